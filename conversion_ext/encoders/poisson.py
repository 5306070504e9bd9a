"""Random spikes whose mean is the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from conversion_ext.encoders.base import Encoder
from conversion_ext.errors import require, warn
from conversion_ext.types import Family

__all__ = ["Poisson"]


@dataclass(frozen=True)
class Poisson(Encoder):
    """Spike at random, ``s = [rand() < gain |x|]`` with rand() uniform in [0, 1), and send ``sign(x) s / gain``.

    The mean of the steps is x, whatever the gain; its standard deviation after T steps is
    ``sqrt(p (1 - p) / T) / gain`` with ``p = gain |x|``. With ``gain = 1`` spikes are {0, 1}. Where p would exceed 1 it
    is 1, so x is clipped at 1 / gain, with a warning. Negative inputs are refused unless ``signed``.

    Raises ValueError when an input is negative and ``signed`` is False.

    Reference: Cao, Chen, Khosla, IJCV 2015 (``rand() < c I``, c is the gain here); Diehl et al., IJCNN 2015.
    """

    gain: float = 1.0
    signed: bool = False

    def __post_init__(self) -> None:
        require(
            isinstance(self.gain, Real) and 0 < self.gain < torch.inf,
            f"Poisson(gain={self.gain!r}): the gain is a positive number, best 1 / max |x|.",
        )

    @property
    def family(self) -> Family:
        """The values that a step takes: spikes, unless a gain scales them."""
        if self.gain != 1:
            return Family.ANALOG
        return Family.SIGNED if self.signed else Family.BINARY

    def encode(self, frames: Iterable[Tensor], T: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield a random step for each frame."""
        for x in frames:
            require(
                self.signed or not bool((x < 0).any()),
                f"Poisson() was given an input of {x.min():.4g}: a spike cannot be negative; shift the input to 0 or "
                "more, or take Poisson(signed=True).",
            )
            p = self.gain * x.abs()
            if bool((p > 1).any()):
                most = f"{1 / self.gain:.4g}"
                warn(f"Poisson(gain={self.gain:.4g}) clips inputs beyond {most}; take a gain of at most 1 / max |x|.")
            # Drawn where the generator lives, so that a seed means the same on every device.
            draw = torch.rand(x.shape, generator=generator, device=generator.device).to(x.device)
            yield (draw < p) * x.sign() / self.gain
