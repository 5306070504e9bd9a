"""Events where the input changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from conversion_ext.encoders.base import Encoder
from conversion_ext.errors import require
from conversion_ext.types import Family

__all__ = ["Delta"]


@dataclass(frozen=True)
class Delta(Encoder):
    """Send 1 where a frame rose by ``threshold`` or more over the one before it, with ``off`` also -1 where it fell so.

    The frame before the first is 0, so an image that does not change gives events at the first step only. For
    sequences, as an event camera sees them: ``simulate(snn, x_seq=Delta(0.1)(frames))``.

    Events are differences, no rate: converted networks decode rates, so this is for networks trained on events.

    Reference: Eshraghian et al., Proc. IEEE 2023 (section III-A; ``snntorch.spikegen.delta`` gives the same).
    """

    threshold: float = 0.1
    off: bool = False

    def __post_init__(self) -> None:
        require(
            isinstance(self.threshold, Real) and 0 < self.threshold < torch.inf,
            f"Delta(threshold={self.threshold!r}): the least change that counts is a positive number.",
        )

    @property
    def family(self) -> Family:
        """The values that a step takes."""
        return Family.SIGNED if self.off else Family.BINARY

    def encode(self, frames: Iterable[Tensor], T: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the events of each frame."""
        before: Tensor | None = None
        for x in frames:
            change = x if before is None else x - before
            events = change >= self.threshold
            yield (events.to(x.dtype) - (change <= -self.threshold).to(x.dtype)) if self.off else events.to(x.dtype)
            before = x
