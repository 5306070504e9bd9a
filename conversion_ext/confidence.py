"""When a decision is stable: the rule by which a simulation lets go of a sample."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Self

import torch
from torch import Tensor

from conversion_ext.errors import CalibrationError, require

__all__ = ["Confidence"]


@dataclass(frozen=True)
class Confidence:
    """Let go of a sample when its margin stays at or above ``threshold``; for ``simulate(..., exit=Confidence(0.9))``.

    The margin of a decoded output [N, classes] is that of the two largest softmax probabilities. It is looked at
    every ``every`` steps, and has to reach the threshold at ``stable`` looks in a row, each with the same largest
    class. What the threshold costs in accuracy is to be measured: see :meth:`calibrate`.

    Reference: Li et al., ICML 2023 (SEENN, confidence thresholds for exits in time).
    """

    threshold: float
    every: int = 4
    stable: int = 2

    def __post_init__(self) -> None:
        require(
            isinstance(self.threshold, Real) and 0 < self.threshold <= 1,
            f"Confidence(threshold={self.threshold!r}): a margin of probabilities is in (0, 1].",
        )
        for name in ("every", "stable"):
            value = getattr(self, name)
            require(
                isinstance(value, int) and value >= 1,
                f"Confidence({name}={value!r}): give a number of {'steps' if name == 'every' else 'looks'} >= 1.",
            )

    def begin(self, N: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return (looks in a row, class) before the first look, [N] each."""
        return torch.zeros(N, dtype=torch.long, device=device), torch.full((N,), -1, device=device)

    def look(self, memory: tuple[Tensor, Tensor], output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the memory after a look at ``output`` [N, classes]; a sample is done where ``looks >= stable``."""
        looks, last = memory
        best = output.float().softmax(1).topk(2, 1)
        found = best.indices[:, 0]
        sure = best.values[:, 0] - best.values[:, 1] >= self.threshold
        return torch.where(sure, torch.where(found == last, looks, 0) + 1, 0), found

    def steps(self, outputs: Tensor) -> Tensor:
        """Return the steps [N] after which samples with ``outputs`` [T, N, classes] of steps 1 ... T are let go."""
        T, N = outputs.shape[:2]
        memory, steps = self.begin(N, outputs.device), torch.full((N,), T, device=outputs.device)
        for t in range(self.every, T, self.every):
            memory = self.look(memory, outputs[t - 1])
            steps = torch.where((memory[0] >= self.stable) & (steps == T), t, steps)
        return steps

    @classmethod
    def calibrate(cls, outputs: Tensor, target: Tensor, loss: float = 0.001, every: int = 4, stable: int = 2) -> Self:
        """Return the smallest threshold that costs at most ``loss`` of the accuracy after all T steps.

        ``outputs`` [T, N, classes] of steps 1 ... T, as ``simulate(snn, x, T).outputs`` gives them, and ``target``
        [N] belong to data that neither trained nor calibrated the network. Of 1,000 thresholds those are looked at
        from the largest down, so that every larger one keeps the accuracy as well.
        """
        require(
            outputs.dim() == 3 and target.shape == outputs.shape[1:2] and len(target) > 0 and 0 <= loss <= 1,
            f"Confidence.calibrate() takes outputs [T, N, classes], targets [N] and a loss in [0, 1], got "
            f"{list(outputs.shape)}, {list(target.shape)} and {loss!r}.",
            CalibrationError,
        )
        decided = outputs.argmax(2)
        needed = float((decided[-1] == target).double().mean()) - loss - 1e-9
        chosen = cls(1.0, every, stable)
        for threshold in torch.linspace(0.999, 0.0, 1000, dtype=torch.float64)[:-1].tolist():
            rule = cls(threshold, every, stable)
            right = decided.gather(0, rule.steps(outputs)[None] - 1)[0] == target
            if float(right.double().mean()) < needed:
                break
            chosen = rule
        return chosen
