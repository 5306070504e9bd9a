"""The mean of the output over time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.exact import accumulate
from conversion_ext.readouts.base import Memory, Windowed

__all__ = ["MeanOutput"]


@dataclass(frozen=True)
class MeanOutput(Windowed):
    """Average the readout current over steps start+1 ... t: ``y(t) = sum / (t - start)``.

    Without a neuron behind the last layer this is the ANN's output with activations replaced by rates, in ANN
    units. Before ``start`` the output is 0. ``start > 0`` discards the transient of a deep network;
    ``cx.analysis.estimate_start`` proposes how much of it.

    With ``weights`` (w_1, ..., w_S) it is a weighted mean, ``y(t) = sum w_k o_k / sum w_k``, the last weight being that
    of all later steps: first steps of a deep network know little of its input. The tuner ``OutputWeights`` finds them.
    """

    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", tuple(self.weights))
        numbers = all(isinstance(w, float | int) and math.isfinite(w) and w >= 0 for w in self.weights)
        require(
            numbers and (not self.weights or self.weights[-1] > 0),
            f"MeanOutput(weights={self.weights!r}): give numbers >= 0 and a last one > 0, a weight for each step.",
        )

    def weight(self, t: int) -> float:
        """Return the weight of step t."""
        return self.weights[min(t, len(self.weights)) - 1] if self.weights else 1.0

    def step(self, memory: Memory, x: Tensor, t: int) -> Memory:
        """Add the step where it counts."""
        if t <= self.start:
            return memory
        return (accumulate(memory[0], x * self.weight(t) if self.weights else x),)

    def decode(self, memory: Memory, t: int) -> Tensor:
        """Return the mean over the steps that counted."""
        if not self.weights:
            return memory[0] / max(t - self.start, 1)
        return memory[0] / (sum(map(self.weight, range(self.start + 1, t + 1))) or 1.0)
