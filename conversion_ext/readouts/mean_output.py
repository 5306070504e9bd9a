"""The mean of the output over time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from conversion_ext.exact import accumulate
from conversion_ext.readouts.base import Memory, Readout, require_start

__all__ = ["MeanOutput"]


@dataclass(frozen=True)
class MeanOutput(Readout):
    """Average the readout current over steps start+1 ... t: ``y(t) = sum / (t - start)``.

    Without a neuron behind the last layer this is the ANN's output with activations replaced by rates, in ANN
    units. Before ``start`` the output is 0. ``start > 0`` discards the transient of a deep network;
    ``cx.analysis.estimate_start`` proposes how much of it.
    """

    start: int = 0

    def __post_init__(self) -> None:
        require_start(type(self).__name__, self.start)

    @property
    def first_step(self) -> int:
        """The step after those discarded."""
        return self.start + 1

    def step(self, memory: Memory, x: Tensor, t: int) -> Memory:
        """Add the step where it counts."""
        return (accumulate(memory[0], x),) if t > self.start else memory

    def decode(self, memory: Memory, t: int) -> Tensor:
        """Return the mean over the steps that counted."""
        return memory[0] / max(t - self.start, 1)
