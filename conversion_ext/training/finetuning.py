"""Fine-tune a converted network at a fixed number of steps, and never return a worse one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from conversion_ext.analysis.metrics import R2, RMSE, BinaryAccuracy, Correlation, metric_of
from conversion_ext.analysis.reference import ends_in_sigmoid
from conversion_ext.analysis.scores import Score, main_output
from conversion_ext.conversion.folding import folded
from conversion_ext.data.distributed import all_or_none
from conversion_ext.data.sequences import Layout
from conversion_ext.errors import CalibrationError, require
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.network.state import reset
from conversion_ext.simulation.inputs import Presentation
from conversion_ext.simulation.run import Runner
from conversion_ext.simulation.samples import Batch, require_network
from conversion_ext.tables import Report, Sheet
from conversion_ext.training.checkpoints import accelerator_or_single
from conversion_ext.training.data import Placed, divide
from conversion_ext.training.gradients.base import Gradient, gradient_of
from conversion_ext.training.loop import Epoch, Loop, Run, Terms
from conversion_ext.training.losses import Loss, RateCrossEntropy, loss_of
from conversion_ext.training.optimization import Training
from conversion_ext.training.student import Student, check_trainable, in_spikes, write_learned
from conversion_ext.training.task_losses import BinaryCrossEntropy, OutputSquaredError
from conversion_ext.training.teacher import Teacher
from conversion_ext.training.terms import Distillation, OutputDistillation, RateDistillation

__all__ = ["FinetuneResult", "Term", "finetune"]

Term = Distillation | OutputDistillation | RateDistillation
"""What a teacher may add."""


@dataclass(frozen=True, repr=False)
class FinetuneResult(Report):
    """``snn``: the network of the best epoch; ``history``: all epochs, 0 for the start; ``samples``: how many judged.

    ``best``: the number of that epoch; 0 where training helped nothing, and then ``snn`` is the network given.
    ``metric``: what the scores of the epochs measure.
    """

    snn: SpikingNetwork
    history: tuple[Epoch, ...]
    best: int
    samples: int
    metric: str = "accuracy"

    def sheet(self) -> Sheet:
        """Return one row per epoch, and which one is returned."""
        rows = [
            (str(e.number), f"{e.loss:.4f}" if e.number else "not trained", f"{e.score:.4f}", f"{e.seconds:.1f}")
            for e in self.history
        ]
        start, best = self.history[0].score, self.history[self.best].score
        note = (
            f"epoch {self.best} is returned: {start:.4f} -> {best:.4f}"
            if self.best
            else f"no epoch was better than the converted network, which is returned: {start:.4f}. More data, more "
            "epochs, a lower training=Training(rate=...), normalize=True or a larger T may help"
        )
        title = f"{self.metric} on {self.samples} held-out samples"
        return Sheet(("epoch", "loss", self.metric, "seconds"), rows, title, (note,), left=0)


@dataclass(frozen=True)
class Task:
    """What a network is trained for, as far as its metric tells: the loss and what a teacher adds by default."""

    loss: Loss
    distillation: Distillation | OutputDistillation

    @classmethod
    def of(cls, snn: SpikingNetwork, example: Batch, T: int, metric: Any) -> Task:
        """Return the task of a network, inferred from one batch; raise where its targets fit no metric."""
        sigmoid = ends_in_sigmoid(snn)
        output = Runner(snn, T, (T,))(example.inputs, example.sequence).output
        measured = Score(metric, sigmoid).settle(output, example.target)
        if isinstance(measured, BinaryAccuracy):
            return cls(BinaryCrossEntropy(logits=not sigmoid), OutputDistillation())
        if isinstance(measured, RMSE | R2 | Correlation):
            return cls(OutputSquaredError(), OutputDistillation())
        main = main_output(output)[0]
        return cls(RateCrossEntropy(), Distillation() if main[0].numel() > 1 else OutputDistillation())


@torch.inference_mode(False)
@torch.enable_grad()
def finetune(
    snn: SpikingNetwork,
    loader: Any,
    *,
    T: int,
    epochs: int = 1,
    validation: Any = None,
    metric: Any = None,
    sequence: Layout = None,
    teacher: nn.Module | None = None,
    distillation: Term | Sequence[Term] | None = None,
    loss: Any = None,
    regularizers: Sequence[Callable[[dict[str, Tensor]], Tensor]] = (),
    gradient: str | Gradient = "bptt",
    learn: Sequence[str] = ("weights",),
    normalize: bool = False,
    fold: bool = False,
    training: Training | None = None,
    progress: bool = True,
    **others: NoReturn,
) -> FinetuneResult:
    """Return ``snn`` fine-tuned for T steps, or as it was if no epoch did better on data held out.

    ``snn`` is not changed; what it has frozen stays as it is. Works under ``torch.no_grad`` too. Without labels a
    ``teacher`` takes their place: ``finetune(snn, images, teacher=ann, T=4)`` learns its outputs and activations, and
    agreement with it judges.

    What learns most in a given time without labels: ``gradient="fused"``, ``normalize=True``,
    ``learn=("weights", "potentials")``, ``distillation=(Distillation(2.0), RateDistillation(30.0))`` and
    ``training=Training("relative", rate=0.02, precision="bfloat16")``, for as many images and epochs as there are; at
    more than two steps with a lower rate. For networks that look ahead ``gradient="rate"`` and a rate of 0.004.

    Args:
        snn: a converted network.
        loader: batches with a length, a pair of tensors (inputs, targets) or, with a teacher, a tensor of inputs;
            labels are optional where there is a teacher.
        T: the number of time steps.
        epochs: passes over the data.
        validation: other batches that judge, best some that the ANN was not trained on. By default every
            tenth sample (at most 5,000) of a DataLoader's data set, or every tenth batch of a list, judges and is not
            learned from.
        metric: what judges: a name (accuracy, top5, binary_accuracy, miou, rmse, r2, correlation) or a function
            ``(output, target) -> number``; by default what the targets ask for.
        sequence: the layout of sequences of frames, see :func:`convert`; by default that of the conversion.
        teacher: mostly the ANN; adds ``distillation``, one term or several, by default of its output, and without
            labels of its activations too.
        distillation: what a teacher adds to the loss, or puts in its place where there are no labels.
        loss: ``loss(outputs [T, N, C], target [N])``, a name of ``cx.training.losses``, a value or a function. By
            default what the metric asks for: cross-entropy of the mean output ("rate"), "binary" or "squared_error".
            Of several outputs of a network the main one learns.
        regularizers: functions of {site: rates [N, ...]} that are added.
        gradient: a name of ``cx.training.gradients``, as "bptt", "rate" or "online", or a value such as
            ``ThroughTime(surrogate="atan")``.
        learn: some of "weights", "thresholds" and "gains" (of a network converted with ``fold=False``), "potentials",
            "neurons".
        normalize: put BatchNorm behind the layers that learn, over samples and steps, and fold it into them at the end.
        fold: fold thresholds into the weights at the end.
        training: optimizer, rate, seed, checkpoint, accelerator: ``cx.training.Training(rate=3e-3)``.
        progress: show progress bars.
        others: none; what ``Training`` takes, such as ``checkpoint``, is given in ``training``.

    Returns:
        The best network, and the history of all epochs; ``print`` shows a table.

    Raises:
        ValueError: for arguments that do not fit.
        CalibrationError: for data that cannot be used.
    """
    require_network(snn)
    for name, value in (("T", T), ("epochs", epochs)):
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        require(whole, f"{name}={value!r}: give an integer >= 1.")
    settings = _training(training, others)
    metric_of(metric)
    check_trainable(snn, learn)
    _check_teacher(distillation, teacher)
    rule = gradient_of(gradient)
    data, judges = all_or_none(lambda: divide(loader, validation, settings.seed))
    device = next(snn.parameters()).device
    example = all_or_none(lambda: _example(Placed(snn, judges, device, sequence), teacher))
    task = Task.of(snn, example, T, metric)
    said = _distillation(distillation, teacher, example.target is not None, task)
    watch = bool(regularizers) or any(isinstance(term, RateDistillation) for term in said)
    student = Student(snn, learn, rule.surrogate, rule.detach_reset, watch)
    learned = [p for p in student.parameters() if p.requires_grad]
    require(bool(learned), "Nothing of this network is to be learned: its parameters are all frozen.")
    mechanics = accelerator_or_single(settings.accelerator, learned[0].device)
    if normalize:
        block = snn.conversion.recipe.block_of(T)
        noise = torch.Generator().manual_seed(0)
        shown = Presentation(student.snn, example.inputs, T, block, noise, example.sequence)
        student.normalize(*rule.presented(shown))
    rule.prepare(student.snn)
    # BatchNorm has brought parameters and frozen others.
    optimizer = settings.optimizer_of([p for p in student.parameters() if p.requires_grad], normalize)
    terms = _terms(task.loss if loss is None else loss, regularizers, said, teacher, student, mechanics.device)
    silent = not progress or not mechanics.is_main_process
    loop = Loop(
        Run(snn, student, rule, terms, optimizer, mechanics, data, judges, T, epochs, settings.seed, metric, sequence,
            silent, settings.precision)
    )  # fmt: skip
    if settings.checkpoint is not None:
        loop.keep(Path(settings.checkpoint), settings.checkpoint_every)
    if settings.searches_rate:
        loop.probe()
    loop.train()
    return _result(snn, loop, f"{type(rule).__name__}, {type(optimizer).__name__}", example if fold else None)


def _training(training: Training | None, others: Mapping[str, Any]) -> Training:
    for name in others:
        known = "rate" if name == "lr" else name
        elsewhere = known in Training.__annotations__
        write = f"training=cx.training.Training({known}=...)" if elsewhere else "one of those that its help lists"
        raise TypeError(f"finetune() has no argument {name}=; write {write}.")
    require(
        training is None or isinstance(training, Training),
        f"training={training!r}: give cx.training.Training(...), or None for its defaults.",
        TypeError,
    )
    return training or Training()


def _example(judges: Placed, teacher: Any) -> Batch:
    """Return a batch that is not learned from; it has a target unless there is a teacher."""
    first = next(iter(judges), None)
    require(first is not None, "validation holds no batch; give at least one, in every process.", CalibrationError)
    assert first is not None
    require(
        first.target is not None or teacher is not None,
        f"A batch is a {type(first.inputs[0]).__name__} without a target; fine-tuning needs (input, target) batches, "
        "or a teacher: pass teacher=ann.",
        CalibrationError,
    )
    return first


def _check_teacher(distillation: Any, teacher: Any) -> None:
    require(
        teacher is None or isinstance(teacher, nn.Module),
        f"teacher is a {type(teacher).__name__}; pass the ANN, a torch.nn.Module.",
        TypeError,
    )
    require(
        distillation is None or teacher is not None, f"distillation={distillation!r} needs a teacher: pass teacher=ann."
    )


def _distillation(distillation: Any, teacher: Any, labelled: bool, task: Task) -> tuple[Term, ...]:
    """Return what a teacher adds, checked."""
    if teacher is None:
        return ()
    default = (task.distillation,) if labelled else (task.distillation, RateDistillation())
    said = default if distillation is None else distillation
    said = tuple(said) if isinstance(said, Sequence) else (said,)
    require(
        all(isinstance(term, Term) for term in said),
        f"distillation={distillation!r}: give Distillation(), RateDistillation(), OutputDistillation(), or several of "
        "them.",
        TypeError,
    )
    return said


def _terms(
    loss: Any,
    regularizers: Sequence[Any],
    said: Sequence[Any],
    teacher: nn.Module | None,
    student: Student,
    device: Any,
) -> Terms:
    """Return what is minimized."""
    measure = loss_of(loss)
    if getattr(measure, "spiking", False):
        measure = in_spikes(measure, student.snn)
    layers = any(isinstance(term, RateDistillation) for term in said)
    voice = None if teacher is None else Teacher(teacher, student.snn, device, layers)
    return Terms(measure, tuple(regularizers), said, voice)


def _result(snn: SpikingNetwork, loop: Loop, how: str, example: Batch | None) -> FinetuneResult:
    """Return the best network where ``snn`` lies, with a note of what was done to it; with an example it is folded."""
    best, history, T = loop.winner(), loop.history, loop.run.T
    trained = loop.judged if best else copy.deepcopy(snn)
    write_learned(trained, loop.chosen)
    trained = trained.to(next(snn.parameters()).device)
    if best:
        note = (
            f"Fine-tuned for T={T} ({how}): {history[0].score:.4f} -> {history[best].score:.4f} on "
            f"{loop.samples} held-out samples in epoch {best}."
        )
        trained.record = replace(snn.record, T=T, notes=(*snn.record.notes, note))
    if example is not None and not trained.conversion.folded:
        trained = folded(trained, example.samples())
    reset(trained)
    metric = "accuracy" if loop.metric is None else loop.metric.name
    metric = metric if loop.labelled else f"agreement with the teacher ({metric})"
    return FinetuneResult(trained, tuple(history), best, loop.samples, metric)
