"""The training loop: epochs, the guard that judges each, and checkpoints that let a killed run go on."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from conversion_ext.analysis.evaluation import evaluate
from conversion_ext.data.batches import check_inputs
from conversion_ext.data.distributed import added, all_or_none, gathered, processes, rank
from conversion_ext.network.spiking_network import Root
from conversion_ext.network.state import reset
from conversion_ext.simulation.inputs import Presentation
from conversion_ext.training.checkpoints import load_checkpoint, save_checkpoint
from conversion_ext.training.data import Placed
from conversion_ext.training.gradients.base import Gradient, Objective
from conversion_ext.training.student import Student, give_back
from conversion_ext.training.teacher import Teacher
from conversion_ext.training.terms import Distillation, RateDistillation

__all__ = ["Epoch", "Loop", "Terms"]

WARM_UP = 0.05  # of all steps: the first gradients of Adam are as large as any, whatever they say
CLIP = 1.0  # norm of the gradient


@dataclass(frozen=True)
class Epoch:
    """One pass over the data; number 0 is the converted network. ``accuracy``: on held-out data, at T steps."""

    number: int
    loss: float
    accuracy: float
    seconds: float

    def __str__(self) -> str:
        loss = f"loss {self.loss:8.4f}" if self.number else "not trained  "
        return f"epoch {self.number:3d}  {loss}  accuracy {self.accuracy:.4f}"


class Terms:
    """What is minimized: a loss, what a teacher adds, and what regularizers add."""

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        regularizers: Sequence[Callable[[dict[str, Tensor]], Tensor]],
        distillation: Sequence[Distillation | RateDistillation],
        teacher: Teacher | None,
    ) -> None:
        self.loss, self.regularizers, self.distillation = loss, regularizers, distillation
        self.teacher = teacher

    def of(self, inputs: tuple[Any, ...], target: Tensor) -> Objective:
        """Return the objective for a batch."""
        said = None if self.teacher is None else self.teacher.of(inputs)

        def objective(outputs: Tensor, rates: dict[str, Tensor]) -> Tensor:
            total = self.loss(outputs, target)
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


class Loop:
    """A training from its start, or from where a checkpoint left it."""

    def __init__(
        self, snn: Root, student: Student, rule: Gradient, terms: Terms, optimizer: Any, mechanics: Any, data: Any,
        judges: Any, T: int, epochs: int, seed: int, progress: bool,
    ) -> None:  # fmt: skip
        self.student, self.rule, self.terms = student, rule, terms
        self.T, self.block = T, snn.conversion.recipe.block_of(T)
        self.epochs, self.seed, self.silent = epochs, seed, not progress or not mechanics.is_main_process
        self.mechanics = mechanics
        self.network, self.optimizer = mechanics.prepare(student, optimizer)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.data, self.judges = Placed(data, mechanics.device), Placed(judges, mechanics.device)
        self.steps = min(gathered(len(data)))
        self.judged = copy.deepcopy(snn).to(mechanics.device)
        self.samples = 0
        self.history: list[Epoch] = []
        self.chosen = dict[str, Tensor]()  # what the best epoch learned; at the start nothing
        self.number, self.step, self.loss = 0, 0, 0.0  # where it is: after `step` steps of epoch `number` + 1
        self.path: Path | None = None
        self.every = 0
        self.random: Any = None  # torch's state after those steps
        self.order: Any = None  # that of the loader's own generator at the start of the epoch

    def keep(self, path: Path, every: int) -> None:
        """Write checkpoints to ``path``, and go on from the one there."""
        self.path, self.every = path, every
        start = b"".join(p.detach().cpu().contiguous().numpy().tobytes() for p in self.student.parameters())
        self.facts = {
            "T": self.T, "number of epochs": self.epochs, "seed": self.seed, "number of batches": self.steps,
            "gradient": repr(self.rule), "learning rate": self.peaks,
            "network": hashlib.sha256(start).hexdigest(),
        }  # fmt: skip
        # One process writes it, and it may lie where the others do not see it.
        (state, *_) = gathered(all_or_none(lambda: load_checkpoint(path, self.facts) if rank() == 0 else None))
        if state is not None:
            give_back(self.student.snn, state["student"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.mechanics.scaler is not None:
                self.mechanics.scaler.load_state_dict(state["scaler"])
            self.history = [Epoch(**row) for row in state["history"]]
            self.chosen, self.samples = state["chosen"], state["samples"]
            self.random, self.order = state["random"], state["order"]
            self.number, self.step, self.loss = state["number"], state["step"], state["loss"]

    def save(self) -> None:
        """Write down where the training is."""
        if self.path is None or not self.mechanics.is_main_process:
            return
        scaler = None if self.mechanics.scaler is None else self.mechanics.scaler.state_dict()
        save_checkpoint(self.path, {
            "run": self.facts, "student": self.student.state(), "optimizer": self.optimizer.state_dict(),
            "scaler": scaler, "history": [asdict(epoch) for epoch in self.history], "chosen": self.chosen,
            "random": torch.get_rng_state() if self.step else None, "order": self.order, "samples": self.samples,
            "number": self.number, "step": self.step, "loss": self.loss,
        })  # fmt: skip

    def train(self) -> None:
        """Train what is left; ``chosen`` is what the best epoch learned, ``history`` all of them."""
        if not self.history:
            self.judge(math.nan, 0.0)
        while self.number < self.epochs:
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
        return max(self.history, key=lambda epoch: (epoch.accuracy, -epoch.number)).number

    def judge(self, loss: float, seconds: float) -> None:
        """Add an epoch to the history, and keep what it learned if it is the best."""
        self.student.agree()
        learned = self.student.learned() if self.number else {}  # folding BatchNorm rounds
        give_back(self.judged, learned)
        found = evaluate(self.judged, self.judges, self.T, at=(self.T,), progress=False)
        self.samples = found.samples
        self.history.append(Epoch(self.number, loss, float(found.accuracy[-1]), seconds))
        if self.winner() == self.number:
            self.chosen = learned

    def epoch(self) -> None:
        """Train for what is left of an epoch; what is random depends on seed and epoch alone."""
        torch.manual_seed(_seed(self.seed, self.number))
        generator, done = self.data.generator, self.step
        if generator is not None and self.step:
            generator.set_state(self.order)
        self.order = None if generator is None else generator.get_state()
        bar = tqdm(self.data, f"epoch {self.number + 1}", self.steps, disable=self.silent)
        for index, (x, target) in enumerate(bar):
            if index == self.steps:
                break
            if index < done:  # before the interruption; loaded once more so that the same ones follow
                if index == done - 1:
                    torch.set_rng_state(self.random)
                continue
            inputs = x if isinstance(x, tuple) else (x,)
            if self.number == 0:
                check_inputs(inputs, self.student, f"Batch {index}")
            self.advance(inputs, target, index)
            self.step = index + 1
            bar.set_postfix(loss=f"{self.loss / self.step:.4f}", refresh=False)
            if not math.isfinite(self.loss):
                break
            if self.every and self.step % self.every == 0:
                self.save()

    def advance(self, inputs: tuple[Any, ...], target: Tensor, index: int) -> None:
        """Make one step of the optimizer."""
        factor = _schedule((self.number * self.steps + index) / (self.epochs * self.steps))
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        place = self.number * self.steps + index
        noise = torch.Generator().manual_seed(_seed(self.seed, place * processes() + rank()))
        batch = Presentation(self.student.snn, inputs, self.T, self.block, noise)
        reset(self.student.snn)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.mechanics.device)
        for loss in self.rule.losses(self.network, self.student, batch, self.terms.of(inputs, target)):
            self.mechanics.backward(loss)
            total += loss.detach()
        self.mechanics.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        self.student.constrain()
        self.loss += float(added(total)) / processes()  # of all, so that they stop together


def _schedule(progress: float) -> float:
    """Return the part of the learning rate at a ``progress`` in [0, 1): up in a line, down in a cosine."""
    return min(progress / WARM_UP + 0.02, 1.0) * 0.5 * (1 + math.cos(math.pi * progress))


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8], "big") >> 1
