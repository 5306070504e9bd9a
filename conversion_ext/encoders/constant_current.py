"""The analog input as a current."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from conversion_ext.encoders.base import Encoder

__all__ = ["ConstantCurrent"]


@dataclass(frozen=True)
class ConstantCurrent(Encoder):
    """Feed the analog input as the same current at every step, without noise.

    What is linear in it is computed once, not at every step.

    Reference: Rueckauer et al., Front. Neurosci. 2017 (section 2.2.5, analog input).
    """

    @property
    def constant(self) -> bool:
        """Whether every step is the frame itself: yes."""
        return True

    def encode(self, frames: Iterable[Tensor], T: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the frames."""
        yield from frames
