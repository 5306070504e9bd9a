"""Fine-tune a converted network at a fixed number of steps, and never return a worse one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from conversion_ext.conversion.folding import folded
from conversion_ext.data.batches import check_inputs
from conversion_ext.data.distributed import all_or_none
from conversion_ext.errors import CalibrationError, require
from conversion_ext.network.spiking_network import Root
from conversion_ext.network.state import reset
from conversion_ext.neurons import Heaviside
from conversion_ext.simulation.inputs import Presentation
from conversion_ext.training.checkpoints import mechanics_of
from conversion_ext.training.data import Placed, divide
from conversion_ext.training.gradients.base import Gradient, gradient_of
from conversion_ext.training.gradients.rate import WholeTrains
from conversion_ext.training.loop import Epoch, Loop, Terms
from conversion_ext.training.losses import loss_of
from conversion_ext.training.student import Student, check_trainable, give_back, in_spikes
from conversion_ext.training.teacher import Teacher
from conversion_ext.training.terms import Distillation, RateDistillation

__all__ = ["FinetuneResult", "finetune"]

RATES = {"adamw": 1e-3, "sgd": 0.01}
NORMALIZED = 3.0  # times as large a rate does best where BatchNorm stands behind the layers


@dataclass(frozen=True)
class FinetuneResult:
    """``snn``: the network of the best epoch; ``history``: all epochs, 0 for the start; ``samples``: how many judged.

    ``best``: the number of that epoch; 0 where training helped nothing, and then ``snn`` is the network given.
    """

    snn: Root
    history: tuple[Epoch, ...]
    best: int
    samples: int

    def __str__(self) -> str:
        start, best = self.history[0].accuracy, self.history[self.best].accuracy
        said = (
            f"epoch {self.best} is returned: {start:.4f} -> {best:.4f}"
            if self.best
            else f"no epoch was better than the converted network, which is returned: {start:.4f}"
        )
        return "\n".join([f"accuracy on {self.samples} held-out samples", *map(str, self.history), said])


def finetune(
    snn: Root,
    loader: Any,
    *,
    T: int,
    epochs: int = 1,
    validation: Any = None,
    teacher: nn.Module | None = None,
    distillation: Distillation | RateDistillation | Sequence[Distillation | RateDistillation] | None = None,
    loss: Any = "rate",
    regularizers: Sequence[Callable[[dict[str, Tensor]], Tensor]] = (),
    gradient: str | Gradient = "bptt",
    surrogate: str | Heaviside | None = None,
    detach_reset: bool = True,
    learn: Sequence[str] = ("weights",),
    normalize: bool = False,
    fold: bool = False,
    optimizer: str | Callable[[Any], torch.optim.Optimizer] = "adamw",
    rate: float | None = None,
    weight_decay: float = 0.0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    accelerator: Any = None,
    seed: int = 0,
    progress: bool = True,
) -> FinetuneResult:
    """Return ``snn`` fine-tuned for T steps, or as it was if no epoch did better on data held out.

    ``loader``: labelled batches with a length, or a pair of tensors; ``validation``: others that judge, by default
    every tenth sample (at most 5,000) of a DataLoader's data set, or every tenth batch of a list, which then is not
    learned from; better are some that the ANN was not trained on.
    ``gradient``: a name of ``cx.training.gradients``, as "bptt", "rate" or "online", or a value;
    ``surrogate``: a name of the framework's, or a function; ``loss(outputs [T, N, C], target [N])``: a value, function
    or name; ``regularizers`` take {site: rates [N, ...]}; ``teacher``, mostly the ANN, adds ``distillation``, one term
    or several, by default of its output. ``learn``: of "weights", "thresholds" and "gains" (with ``fold=False``),
    "potentials", "neurons"; ``normalize`` puts BatchNorm behind the layers that learn, over samples and steps, and
    folds it into them when they have; ``fold`` then folds thresholds into the weights. ``optimizer``: "adamw", "sgd" or
    a function of parameters; ``rate``, the largest (by default 3 times as large beside BatchNorm), falls along a
    cosine. Training goes on from ``checkpoint``, if there is such a file, and ends as if never interrupted.
    ``accelerator``: an ``accelerate.Accelerator`` for devices, several processes, each with its own part of the data,
    and mixed precision: weights and membranes stay float32, spikes have the type of the currents, and epochs are judged
    in float32. ``snn`` is not changed; what it has frozen stays as it is.

    Raises ValueError for arguments that do not fit, CalibrationError for data that cannot be used.
    """
    require(
        isinstance(snn, Root), f"snn is a {type(snn).__name__}; pass what conversion_ext.convert returned.", TypeError
    )
    for name, value in (("T", T), ("epochs", epochs), ("checkpoint_every", checkpoint_every)):
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        require(whole, f"{name}={value!r}: give an integer >= 1.")
    check_trainable(snn, learn)
    said = _distillation(distillation, teacher)
    watch = bool(regularizers) or any(isinstance(term, RateDistillation) for term in said)
    student = Student(snn, learn, surrogate, detach_reset, watch)
    rule = gradient_of(gradient)
    require(
        surrogate is None or not isinstance(rule, WholeTrains),
        f"surrogate={surrogate!r}: {rule} differentiates spikes in its own way; leave out surrogate=.",
    )
    parameters = [p for p in student.parameters() if p.requires_grad]
    require(bool(parameters), "Nothing of this network is to be learned: its parameters are all frozen.")
    device = parameters[0].device
    mechanics = mechanics_of(accelerator, device)
    data, judges = all_or_none(lambda: divide(loader, validation, seed))
    example = all_or_none(lambda: _example(judges, student, device))
    if normalize:
        block = snn.conversion.recipe.block_of(T)
        batch = Presentation(student.snn, example, T, block, torch.Generator().manual_seed(0))
        student.normalize(*batch.steps(0, T // block, block))
    rule.prepare(student.snn)
    own = _optimizer(optimizer, rate, weight_decay, student, normalize)
    terms = _terms(loss, regularizers, said, teacher, student, mechanics.device)
    loop = Loop(snn, student, rule, terms, own, mechanics, data, judges, T, epochs, seed, progress)
    if checkpoint is not None:
        loop.keep(Path(checkpoint), checkpoint_every)
    loop.train()
    return _result(snn, loop, f"{type(rule).__name__}, {type(own).__name__}", example if fold else None)


def _example(judges: Any, student: Student, device: torch.device) -> tuple[Any, ...]:
    """Return the inputs of a batch that is not learned from."""
    first = next(iter(Placed(judges, device)), None)
    require(first is not None, "validation holds no batch; give at least one, in every process.", CalibrationError)
    x, _ = cast(Any, first)
    inputs = x if isinstance(x, tuple) else (x,)
    check_inputs(inputs, student, "The first batch of validation")
    return inputs


def _distillation(distillation: Any, teacher: Any) -> tuple[Distillation | RateDistillation, ...]:
    """Return what a teacher adds, checked."""
    require(
        teacher is None or isinstance(teacher, nn.Module),
        f"teacher is a {type(teacher).__name__}; pass the ANN, a torch.nn.Module.",
        TypeError,
    )
    require(
        distillation is None or teacher is not None, f"distillation={distillation!r} needs a teacher: pass teacher=ann."
    )
    if teacher is None:
        return ()
    said = (Distillation(),) if distillation is None else distillation
    said = tuple(said) if isinstance(said, Sequence) else (said,)
    require(
        all(isinstance(term, Distillation | RateDistillation) for term in said),
        f"distillation={distillation!r}: give Distillation(), RateDistillation(), or several of them.",
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


def _result(snn: Root, loop: Loop, how: str, example: tuple[Any, ...] | None) -> FinetuneResult:
    """Return the best network where ``snn`` lies, with a note of what was done to it; with an example it is folded."""
    best, history = loop.winner(), loop.history
    found = loop.judged if best else copy.deepcopy(snn)
    give_back(found, loop.chosen)
    found = found.to(next(snn.parameters()).device)
    if best:
        note = (
            f"Fine-tuned for T={loop.T} ({how}): {history[0].accuracy:.4f} -> {history[best].accuracy:.4f} on "
            f"{loop.samples} held-out samples in epoch {best}."
        )
        found.record = replace(snn.record, T=loop.T, notes=(*snn.record.notes, note))
    if example is not None and not found.conversion.folded:
        found = folded(found, example)
    reset(found)
    return FinetuneResult(found, tuple(history), best, loop.samples)


def _optimizer(
    choice: Any, rate: float | None, weight_decay: float, student: Student, normalize: bool
) -> torch.optim.Optimizer:
    """Return the optimizer; decay pulls at weights only, towards 0, where thresholds and potentials do not belong."""
    learned = [p for p in student.parameters() if p.requires_grad]
    require(rate is None or rate > 0, f"rate={rate!r}: the learning rate is a positive number.")
    if callable(choice):
        require(
            rate is None and weight_decay == 0,
            "An optimizer of your own has its rate and weight decay; leave out rate= and weight_decay=.",
        )
        made: Any = choice(learned)
        require(
            isinstance(made, torch.optim.Optimizer), f"optimizer={choice!r} returned no torch optimizer.", TypeError
        )
        return made
    require(
        choice in RATES, f"optimizer={choice!r}: choose one of {', '.join(RATES)}, or give a function of parameters."
    )
    groups = [
        {"params": [p for p in learned if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in learned if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = RATES[choice] * (NORMALIZED if normalize else 1.0) if rate is None else rate
    if choice == "adamw":
        return torch.optim.AdamW(groups, lr=rate)
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
