"""Mean and standard deviation per channel, bit-identical for any order of the numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from conversion_ext.calibration.histogram import slices
from conversion_ext.exact import power_of_two

__all__ = ["Moments"]


class Moments:
    """Mean and standard deviation of the numbers of each channel, those below 0 included.

    Every number is rounded to 16 bits and added, as its square is, to the integers of its octave [C, octaves, 2]: no
    order and no grouping of the numbers changes a bit, and a channel costs 4.3 KiB. Up to 2^30 numbers per channel.
    """

    BITS, LOWEST, OCTAVES = 16, -148, 277  # of a float32, subnormal ones included

    def __init__(self, channels: int, device: torch.device | None = None) -> None:
        self.channels = channels
        self.count = 0  # numbers seen per channel
        self.sums = torch.zeros(channels * self.OCTAVES, 2, dtype=torch.int64, device=device)

    def add(self, x: Tensor) -> None:
        """Add the finite numbers ``x`` [A, C, B] of any float dtype."""
        self.count += x.shape[0] * x.shape[2]
        start = torch.arange(self.channels, device=x.device)[:, None] * self.OCTAVES
        for part in slices(x):
            mantissa, exponent = torch.frexp(part if part.dtype == torch.float64 else part.float())
            m = (mantissa * 2.0**self.BITS).round_().long()
            row = (exponent.long() - self.LOWEST).clamp_(0, self.OCTAVES - 1) + start
            self.sums.index_add_(0, row.flatten(), torch.stack((m, m * m), -1).flatten(0, -2))

    def merge(self, other: Moments) -> None:
        """Add all that ``other`` saw."""
        self.count += other.count
        self.sums = self.sums + other.sums.to(self.sums.device)

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation (divided by n) of each channel, [C] float64."""
        first, second = self.sums.view(self.channels, self.OCTAVES, 2).double().unbind(2)
        unit = power_of_two(torch.arange(self.OCTAVES, device=self.sums.device) + self.LOWEST - self.BITS)
        mean = (first * unit).sum(1) / self.count
        return mean, ((second * unit.square()).sum(1) / self.count - mean.square()).clamp_min_(0).sqrt_()
