"""The training loop: epochs, the guard that judges each, and checkpoints that let a killed run go on."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conversion_ext.analysis.evaluation import Evaluation, evaluate
from conversion_ext.analysis.metrics import Metric
from conversion_ext.data.distributed import added, all_or_none, gathered, processes, rank
from conversion_ext.data.progress import bar, logger
from conversion_ext.data.sequences import Layout
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.network.state import reset
from conversion_ext.simulation.inputs import Presentation
from conversion_ext.simulation.samples import Batch
from conversion_ext.training.checkpoints import (
    check_writable,
    data_digest,
    load_checkpoint,
    name_of,
    save_checkpoint,
    tensor_digest,
)
from conversion_ext.training.data import Placed
from conversion_ext.training.gradients.base import Gradient, Objective
from conversion_ext.training.student import Student, write_learned
from conversion_ext.training.teacher import Teacher
from conversion_ext.training.terms import Distillation, OutputDistillation, RateDistillation

__all__ = ["Epoch", "Loop", "Run", "Terms"]

WARM_UP = 0.05  # of all steps: the first gradients of Adam are as large as any, whatever they say
CLIP = 1.0  # norm of the gradient
PROBE, JUDGES = 24, 4  # steps of a probe, batches that judge it
FACTORS = (1.0, 1 / 4, 1 / 16, 1 / 64)


@dataclass(frozen=True)
class Epoch:
    """One pass over the data; number 0 is the converted network. ``score``: the metric on held-out data, at T steps."""

    number: int
    loss: float
    score: float
    seconds: float

    @property
    def accuracy(self) -> float:
        """The score, where it is an accuracy."""
        return self.score


class Terms:
    """What is minimized: a loss, what a teacher adds, and what regularizers add."""

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        regularizers: Sequence[Callable[[dict[str, Tensor]], Tensor]],
        distillation: Sequence[Distillation | OutputDistillation | RateDistillation],
        teacher: Teacher | None,
    ) -> None:
        self.loss, self.regularizers, self.distillation = loss, regularizers, distillation
        self.teacher = teacher

    def of(self, batch: Batch) -> Objective:
        """Return the objective for a batch; without a target it is the output of the teacher."""
        target = batch.labelled("fine-tuning") if self.teacher is None else batch.target
        said = None if self.teacher is None else self.teacher.of(batch)

        def objective(outputs: Tensor, rates: dict[str, Tensor]) -> Tensor:
            total = outputs.new_zeros(()) if target is None else self.loss(outputs, target)
            if said is not None:
                for term in self.distillation:
                    if isinstance(term, RateDistillation):
                        total = total + term(rates, said.rates)
                    else:
                        total = total + term(outputs, said.output)
            for term in self.regularizers:
                total = total + term(rates)
            return total

        return objective


@dataclass
class Run:
    """What a training consists of: networks, rule, objective, optimizer, data and numbers."""

    snn: SpikingNetwork
    student: Student
    rule: Gradient
    terms: Terms
    optimizer: torch.optim.Optimizer
    mechanics: Any
    data: Any
    judges: Any
    T: int
    epochs: int
    seed: int
    metric: Any = None
    sequence: Layout = None
    silent: bool = False
    precision: str = "float32"

    def call(self, network: Any, *args: Any) -> Any:
        """Return what ``network`` returns, computed in the ``precision`` of the training."""
        if self.precision == "float32":  # which an accelerator may have replaced by its own
            return network(*args)
        with torch.autocast(self.mechanics.device.type, getattr(torch, self.precision)):
            return network(*args)


class Loop:
    """A training from its start, or from where a checkpoint left it."""

    def __init__(self, run: Run) -> None:
        self.run, device = run, run.mechanics.device
        self.block = run.snn.conversion.recipe.block_of(run.T)
        self.network, self.optimizer = run.mechanics.prepare(run.student, run.optimizer)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.data = Placed(run.snn, run.data, device, run.sequence)
        self.judges = Placed(run.snn, run.judges, device, run.sequence)
        self.steps = min(gathered(len(run.data)))
        self.judged = copy.deepcopy(run.snn).to(device)
        self.samples = 0
        self.labelled = True  # whether targets judge, and not the teacher
        self.metric: Metric | None = None
        self.history: list[Epoch] = []
        self.chosen = dict[str, Tensor]()  # what the best epoch learned; at the start nothing
        self.factor = 1.0  # of the rates: found by `probe`
        self.number, self.step, self.loss = 0, 0, 0.0  # where it is: after `step` steps of epoch `number` + 1
        self.path: Path | None = None
        self.every = 0
        self.random: Any = None  # torch's state after those steps
        self.order: Any = None  # that of the loader's own generator at the start of the epoch

    def keep(self, path: Path, every: int) -> None:
        """Write checkpoints to ``path``, and go on from the one there; raise before any training if that cannot be."""
        self.path, self.every, self.facts = path, every, self._facts()
        # One process writes it, and it may lie where the others do not see it.
        (state, *_) = gathered(all_or_none(lambda: self._load(path) if rank() == 0 else None))
        if state is not None:
            write_learned(self.run.student.snn, state["student"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.run.mechanics.scaler is not None:
                self.run.mechanics.scaler.load_state_dict(state["scaler"])
            self.history = [Epoch(**row) for row in state["history"]]
            self.chosen, self.samples, self.factor = state["chosen"], state["samples"], state["factor"]
            self.random, self.order = state["random"], state["order"]
            self.number, self.step, self.loss = state["number"], state["step"], state["loss"]

    def _load(self, path: Path) -> dict[str, Any] | None:
        check_writable(path)
        return load_checkpoint(path, self.facts)

    def _facts(self) -> dict[str, Any]:
        """Return what two runs must share for one to go on from the other's checkpoint."""
        run, terms = self.run, self.run.terms
        teacher = None if terms.teacher is None else tensor_digest(terms.teacher.ann.state_dict().values())
        return {
            "T": run.T, "number of epochs": run.epochs, "seed": run.seed, "number of batches": self.steps,
            "gradient": name_of(run.rule), "learning rate": self.peaks, "optimizer": type(run.optimizer).__name__,
            "precision": run.precision,
            "weight decay": [group.get("weight_decay") for group in run.optimizer.param_groups],
            "loss": name_of(terms.loss), "regularizers": [name_of(term) for term in terms.regularizers],
            "distillation": [name_of(term) for term in terms.distillation], "teacher": teacher,
            "metric": name_of(run.metric), "data": data_digest(run.data), "validation": data_digest(run.judges),
            "network": tensor_digest(run.student.parameters()),
        }  # fmt: skip

    def save(self) -> None:
        """Write down where the training is."""
        mechanics = self.run.mechanics
        if self.path is None or not mechanics.is_main_process:
            return
        scaler = None if mechanics.scaler is None else mechanics.scaler.state_dict()
        save_checkpoint(self.path, {
            "run": self.facts, "student": self.run.student.state(), "optimizer": self.optimizer.state_dict(),
            "scaler": scaler, "history": [asdict(epoch) for epoch in self.history], "chosen": self.chosen,
            "random": torch.get_rng_state() if self.step else None, "order": self.order, "samples": self.samples,
            "factor": self.factor,
            "number": self.number, "step": self.step, "loss": self.loss,
        })  # fmt: skip

    def train(self) -> None:
        """Train what is left; ``chosen`` is what the best epoch learned, ``history`` all of them."""
        if not self.history:
            self.judge(math.nan, 0.0)
        while self.number < self.run.epochs:
            began = time.monotonic()
            with torch.random.fork_rng(devices=[]):
                self.epoch()
            self.number, self.step = self.number + 1, 0
            loss, self.loss = self.loss / self.steps, 0.0
            self.judge(loss, time.monotonic() - began)
            self.save()
            if not math.isfinite(loss):
                break

    def winner(self) -> int:
        """Return the number of the best epoch, of equals the first."""
        sign = 1 if self.metric is None or self.metric.maximize else -1
        scored = [epoch for epoch in self.history if not math.isnan(epoch.score)] or self.history[:1]
        return max(scored, key=lambda epoch: (sign * epoch.score, -epoch.number)).number

    def judge(self, loss: float, seconds: float) -> None:
        """Add an epoch to the history, and keep what it learned if it is the best."""
        student = self.run.student
        student.agree()
        learned = student.learned() if self.number else {}  # folding BatchNorm rounds
        write_learned(self.judged, learned)
        result = self._evaluated(self.judges)
        self.samples, self.metric = result.samples, result.metric
        self.history.append(Epoch(self.number, loss, float(result.score[-1]), seconds))
        logger.info("epoch %d: loss %.4f, %s %.4f", self.number, loss, self.metric.name, self.history[-1].score)
        if self.winner() == self.number:
            self.chosen = learned

    def epoch(self) -> None:
        """Train for what is left of an epoch; what is random depends on seed and epoch alone."""
        torch.manual_seed(_seed(self.run.seed, self.number))
        generator, done = self.data.generator, self.step
        if generator is not None and self.step:
            generator.set_state(self.order)
        self.order = None if generator is None else generator.get_state()
        batches = bar(self.data, f"epoch {self.number + 1}", not self.run.silent, self.steps)
        for index, batch in enumerate(batches):
            if index == self.steps:
                break
            if index < done:  # before the interruption; loaded once more so that the same ones follow
                if index == done - 1:
                    torch.set_rng_state(self.random)
                continue
            self.advance(batch, index)
            self.step = index + 1
            batches.set_postfix(loss=f"{self.loss / self.step:.4f}", refresh=False)
            if not math.isfinite(self.loss):
                break
            if self.every and self.step % self.every == 0:
                self.save()

    def advance(self, batch: Batch, index: int) -> None:
        """Make one step of the training."""
        place = self.number * self.steps + index
        self.loss += self.descend(batch, place, _schedule(place / (self.run.epochs * self.steps)))

    def descend(self, batch: Batch, place: int, part: float) -> float:
        """Make one step of the optimizer with a ``part`` of the rates; return the loss, that of all processes."""
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.factor * part
        total = torch.zeros((), device=self.run.mechanics.device)
        self.optimizer.zero_grad()
        for loss in self.losses(batch, place):
            self.run.mechanics.backward(loss)
            total += loss.detach()
        self.run.mechanics.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        self.run.student.constrain()
        return float(added(total)) / processes()  # so that they stop together

    def losses(self, batch: Batch, place: int) -> Iterator[Tensor]:
        """Run a batch and yield its losses; the noise of a random encoder belongs to the ``place``."""
        run = self.run
        noise = torch.Generator().manual_seed(_seed(run.seed, place * processes() + rank()))
        shown = Presentation(run.student.snn, batch.inputs, run.T, self.block, noise, batch.sequence)
        objective = run.call(run.terms.of, batch)
        reset(run.student.snn)
        return run.rule.losses(partial(run.call, self.network), run.student, shown, objective)

    def probe(self) -> None:
        """Find the largest part of the rates with which a short training makes nothing worse on held-out data.

        Neither the loss may rise nor the metric fall. The parts are 1, 1/4, 1/16 and 1/64; each is tried from the
        start, over a few steps in which the rate falls to 0. Nothing else is changed. A training that goes on keeps
        what it found.
        """
        if self.history or self.run.mechanics.scaler is not None:  # a scaler of half precision searches for itself
            return
        student, optimizer = self.run.student.state(), copy.deepcopy(self.optimizer.state_dict())
        judged = copy.deepcopy(self.judged)
        generator = self.data.generator
        order = None if generator is None else generator.get_state()
        count = min(PROBE, self.run.epochs * self.steps)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed(self.run.seed, 0))
            tried = list(islice(cycle(islice(iter(self.data), count)), count))
        for batch in tried if self.run.terms.teacher is None else ():
            batch.labelled("fine-tuning")
        judges = list(islice(iter(self.judges), JUDGES))
        loss, score = self._measured(judges)
        for self.factor in FACTORS:
            for index, batch in enumerate(tried):
                self.descend(batch, index, 1 - index / count)
            new_loss, new_score = self._measured(judges)
            write_learned(self.run.student.snn, student)
            self.optimizer.load_state_dict(copy.deepcopy(optimizer))
            if new_loss <= loss and new_score >= score:
                break
        self.judged = judged
        if generator is not None and order is not None:
            generator.set_state(order)

    @torch.no_grad()
    def _measured(self, batches: Sequence[Batch]) -> tuple[float, float]:
        """Return the mean loss of batches and the metric, larger being better, of all processes."""
        losses = [sum(float(loss) for loss in self.losses(batch, 0)) for batch in batches]
        loss, count = added(torch.tensor([sum(losses), len(losses)], dtype=torch.float64)).tolist()
        self.run.student.agree()
        write_learned(self.judged, self.run.student.learned())
        result = self._evaluated(batches)
        return loss / count, float(result.score[-1]) * (1 if result.metric.maximize else -1)

    def _evaluated(self, judges: Any) -> Evaluation:
        """Return the metric of ``judged`` on data with targets or, where there are none, against the teacher."""
        first = next(iter(judges), None)
        self.labelled = first is None or first.target is not None
        teacher = None if self.labelled or self.run.terms.teacher is None else self.run.terms.teacher.ann
        return evaluate(
            self.judged, judges, self.run.T, at=(self.run.T,), metric=self.run.metric, sequence=self.run.sequence,
            ann=teacher, progress=False,
        )  # fmt: skip


def _schedule(progress: float) -> float:
    """Return the part of the learning rate at a ``progress`` in [0, 1): up in a line, down in a cosine."""
    return min(progress / WARM_UP + 0.02, 1.0) * 0.5 * (1 + math.cos(math.pi * progress))


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8], "big") >> 1
