"""How the readout currents of the steps become an output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.exact import state_dtype

__all__ = ["Memory", "Readout", "Windowed"]
Memory = tuple[Tensor, ...]
"""What a readout remembers, each [N, ...] in float32 or wider."""


@dataclass(frozen=True)
class Readout:
    """Base of all readouts: a fold over the steps, pure functions of what they are given.

    ``begin`` makes the memory, ``step`` takes the output x [N, ...] of step t = 1, 2, ... into it, ``decode`` gives the
    output after step t. ``spiking`` readouts need spikes, so ``convert`` puts neurons behind the last layer for them.
    """

    @property
    def spiking(self) -> bool:
        """Whether it reads spikes of output neurons, not currents."""
        return False

    @property
    def first_step(self) -> int:
        """The first step that it reads."""
        return 1

    def doubt(self, first: float) -> str:
        """Return a warning where ``first`` output neurons spike at the first step, on average over samples, or ""."""
        return ""

    def begin(self, x: Tensor) -> Memory:
        """Return the memory before the first step for outputs like ``x``: one sum."""
        return (torch.zeros_like(x, dtype=state_dtype(x.dtype)),)

    def step(self, memory: Memory, x: Tensor, t: int) -> Memory:
        """Return the memory after step ``t``; tensors of ``memory`` may be written to."""
        raise TypeError(f"{type(self).__name__} must define step().")

    def decode(self, memory: Memory, t: int) -> Tensor:
        """Return the output after step ``t``, a tensor of its own."""
        raise TypeError(f"{type(self).__name__} must define decode().")


@dataclass(frozen=True)
class Windowed(Readout):
    """A readout of the steps after the first ``start``, which it discards."""

    start: int = 0

    def __post_init__(self) -> None:
        require(
            isinstance(self.start, int) and not isinstance(self.start, bool) and self.start >= 0,
            f"{type(self).__name__}(start={self.start!r}): start is the number of first steps to discard, an "
            "integer >= 0.",
        )

    @property
    def first_step(self) -> int:
        """The step after those discarded."""
        return self.start + 1
