"""The contract of an encoder, and how the time loop reads from one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from conversion_ext.types import Family

__all__ = ["Encoder"]


@dataclass(frozen=True)
class Encoder:
    """Base of all encoders: ``encode`` turns frames into the steps that a network sees, one at a time.

    A frame and a step are [N, ...]; an image is the same frame at every step. Steps are made when they are asked
    for, so memory does not grow with T, and how many are run per call does not change them. Noise comes from the
    generator given, never from torch's global one. Called with frames [T, N, ...] an encoder returns all steps at
    once, which is what ``simulate(x_seq=...)`` takes:

    >>> from conversion_ext.encoders import Delta
    >>> Delta(threshold=0.5)(torch.tensor([0.0, 1.0, 1.2]).view(3, 1, 1)).flatten().tolist()
    [0.0, 1.0, 0.0]
    """

    @property
    def constant(self) -> bool:
        """Whether every step is the frame itself, so that nothing need be encoded."""
        return False

    @property
    def family(self) -> Family:
        """The values that a step takes."""
        return Family.ANALOG

    def encode(self, frames: Iterable[Tensor], T: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield one step [N, ...] per frame [N, ...], of which there are T."""
        raise TypeError(f"{type(self).__name__} must define encode().")

    def __call__(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the steps [T, N, ...] of ``frames`` [T, N, ...]; the noise is that of seed 0 without a generator."""
        return torch.stack(list(self.encode(frames, len(frames), generator or torch.Generator().manual_seed(0))))
