"""The membrane potential of output neurons that do not spike."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.exact import accumulate
from conversion_ext.readouts.base import Memory, Readout

__all__ = ["MembranePotential"]


@dataclass(frozen=True)
class MembranePotential(Readout):
    """Read the potential of output neurons that never fire: ``v = beta v + x`` in ANN units, from 0.

    With ``beta = 1`` that is t times :class:`MeanOutput`, so it decides alike (Rueckauer et al., 2017, their third
    softmax). A leak, ``beta < 1``, weighs late steps more, with a memory of ``1 / (1 - beta)`` steps.

    Reference: Eshraghian et al., Proc. IEEE 2023 (membrane decoding).
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.beta <= 1, f"MembranePotential(beta={self.beta!r}): what is kept of v at a step is in (0, 1].")

    def step(self, memory: Memory, x: Tensor, t: int) -> Memory:
        """Leak and charge."""
        return (accumulate(memory[0] * self.beta if self.beta < 1 else memory[0], x),)

    def decode(self, memory: Memory, t: int) -> Tensor:
        """Return the potential."""
        return memory[0].clone()
