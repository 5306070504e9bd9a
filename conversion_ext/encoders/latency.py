"""One spike per value: the larger, the earlier."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from conversion_ext.encoders.base import Encoder
from conversion_ext.errors import require
from conversion_ext.types import Family

__all__ = ["Latency"]


@dataclass(frozen=True)
class Latency(Encoder):
    """Spike once, at step ``1 + round((T - 1) d(x))`` of T; values below ``threshold`` never spike.

    ``d`` in [0, 1] is the time that a leaky membrane charged by x takes to reach the threshold,
    ``log(x / (x - threshold))``, divided by that of the least x that spikes (threshold + 1e-7); with ``linear`` it is
    ``1 - x``. Inputs lie in [0, 1]; of a sequence the first frame is encoded. snnTorch's encoder divides by the largest
    delay of the batch instead, so there a sample's spikes depend on its neighbours.

    A spike time is no rate: converted networks decode rates, so this is for hand-written and temporal networks.

    Reference: Eshraghian et al., Proc. IEEE 2023 (section III-A).
    """

    threshold: float = 0.01
    linear: bool = False

    def __post_init__(self) -> None:
        require(
            isinstance(self.threshold, Real) and 0 < self.threshold < 1,
            f"Latency(threshold={self.threshold!r}): the least value that spikes lies in (0, 1).",
        )

    @property
    def family(self) -> Family:
        """The values that a step takes."""
        return Family.BINARY

    def encode(self, frames: Iterable[Tensor], T: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield spikes at the times of the first frame."""
        when: Tensor | None = None
        for t, x in enumerate(frames):
            if when is None:
                require(
                    bool((x >= 0).all() and (x <= 1).all()),
                    f"Latency() was given inputs from {x.min():.4g} to {x.max():.4g}: scale them to [0, 1].",
                )
                when = torch.where(x < self.threshold, -1, ((T - 1) * self.delay(x)).round())
            yield (when == t).to(x.dtype)

    def delay(self, x: Tensor) -> Tensor:
        """Return when x spikes as a share of the whole time, 0 for the first step, 1 for the last."""
        if self.linear:
            return 1 - x
        least = self.threshold + 1e-7
        x = x.double().clamp_min(least)
        return (x / (x - self.threshold)).log() / math.log(least / (least - self.threshold))
