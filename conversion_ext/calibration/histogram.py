"""Statistics that no order of numbers changes: a histogram over leading bits, and mean and standard deviation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from conversion_ext.errors import CalibrationError, require
from conversion_ext.exact import power_of_two
from conversion_ext.types import Granularity, PerLayer

__all__ = ["Bins", "Histogram", "as_channels", "check_channels"]
# A float32 is sign | 8 exponent bits | 23 mantissa bits. Without the last 14 bits the pattern of a positive number
# is octave * 512 + step: 512 bins per octave, whose middle is within 1/1024 = 0.098 % of all they hold.
DROPPED_BITS = 14
PER_OCTAVE = 1 << (23 - DROPPED_BITS)
LAYER_OCTAVES = 254  # every normal float32
CHANNEL_OCTAVES = 24  # 22,720 channels of a ResNet-50 x 24 x 512 int32 counters are 1.04 GiB
# Counters are of the narrowest kind that no count of numbers overflows: most sites of a transformer see few of them.
COUNTERS = ((torch.int16, (1 << 15) - 1), (torch.int32, (1 << 31) - 1), (torch.int64, (1 << 63) - 1))
MOST_ROWS = 1 << 20  # channels x octaves of one table: 2 GiB, and an index below `NOT_POSITIVE`
NOT_POSITIVE = (1 << 30) - 1
SLICE = 1 << 19  # elements worked on at a time: few enough for a cache, enough to occupy threads


class Bins(NamedTuple):
    """Channel c counts ``counts[c, b]`` numbers near ``scale[c] * values[b]``, each within 0.1 %.

    ``values`` [B] and ``scale`` [C] are float64, ``scale`` powers of two, ``counts`` [C, B] integers (a view).
    """

    values: Tensor
    counts: Tensor
    scale: Tensor


class Histogram:
    """Counts of the positive numbers of each channel, for all channels in one table [C, depth, 512].

    A row of 512 bins is an octave. Each channel has its own window of ``depth`` octaves, which ends at the octave
    of its largest number: 254 (all there are) for one channel, 24 for many, fewer beyond 43,690 channels. What is
    below its window is counted in ``below``; numbers under 2^-126 count as zero. The state does not depend on the
    order or the grouping in which numbers came: a window only ever moves up, so what it holds in the end it always
    held.
    """

    def __init__(self, channels: int, device: torch.device | None = None) -> None:
        self.channels = channels
        self.depth = LAYER_OCTAVES if channels == 1 else max(1, min(CHANNEL_OCTAVES, MOST_ROWS // channels))
        self.count = 0  # numbers seen per channel, zeros and negative ones included
        self.top = torch.full((channels,), -1, dtype=torch.int32, device=device)
        self.below = torch.zeros(channels, dtype=torch.int64, device=device)
        size = channels * self.depth * PER_OCTAVE + 1  # the table and one slot for all the rest
        self.counters = torch.zeros(size, dtype=COUNTERS[0][0], device=device)

    @property
    def table(self) -> Tensor:
        """The counters [C, depth, 512], lowest octave first (a view)."""
        return self.counters[:-1].view(self.channels, self.depth, PER_OCTAVE)

    @property
    def octaves(self) -> Tensor:
        """How many numbers are in each octave of each window, [C, depth] int64."""
        # No sum exceeds `count`, which fits the counters; adding in their own type is 14 times as fast as in int64.
        return self.table.sum(2, dtype=self.counters.dtype).long()

    @property
    def positive(self) -> Tensor:
        """How many positive numbers each channel saw, [C] int64."""
        return self.octaves.sum(1) + self.below

    def add(self, x: Tensor, largest: Tensor) -> None:
        """Count the finite numbers ``x`` [A, C, B] of any float dtype, ``largest`` [C] being their maxima."""
        self._enlarge(self.count + x.shape[0] * x.shape[2])
        octave = (largest.float().view(torch.int32) >> 23) - 1
        self._raise(torch.maximum(self.top, octave))
        floor = (self.top + 1 - self.depth) * PER_OCTAVE  # the bin with which the window begins
        start = torch.arange(self.channels, dtype=torch.int32, device=x.device) * (self.depth * PER_OCTAVE)
        for part in slices(x):
            # No boolean masks: selecting by one costs 7 ns per number here, integer arithmetic 0.2 ns. Zero, subnormal
            # and negative numbers have negative bins after the subtraction; masking the sign makes these huge.
            bins = (part.float().view(torch.int32) >> DROPPED_BITS).sub_(PER_OCTAVE).bitwise_and_(NOT_POSITIVE)
            if bool((bins.amin((0, 2)) < floor).any()):
                under = (floor[:, None] - bins).clamp_(0, 1)
                self.below += under.sum((0, 2), dtype=torch.int32)
                bins += under * NOT_POSITIVE
            bins.add_((start - floor)[:, None]).clamp_max_(len(self.counters) - 1)
            self.counters.index_add_(0, bins.flatten(), self.counters.new_ones(1).expand(bins.numel()))
        self.counters[-1] = 0

    def merge(self, other: Histogram) -> None:
        """Add all that ``other`` counted; ``other`` stays as it is."""
        top, below, table = (part.to(self.top.device) for part in (other.top, other.below, other.table))
        self._enlarge(self.count + other.count)
        self._raise(torch.maximum(self.top, top))
        self.below += below + shift_into(table, self.top - top, self.table)

    def _enlarge(self, count: int) -> None:
        """Set ``count`` and widen the counters before one of them could overflow."""
        self.count = count
        self.counters = self.counters.to(next(dtype for dtype, most in COUNTERS if count <= most))

    def _raise(self, top: Tensor) -> None:
        """Move the windows up to the octaves ``top`` [C]."""
        rows = ((top != self.top) & (self.top >= 0)).nonzero().flatten()  # a window without numbers is just placed
        if len(rows):
            old = self.table[rows]
            new = torch.zeros_like(old)
            self.below[rows] += shift_into(old, (top - self.top)[rows], new)
            self.table[rows] = new
        self.top = top

    def bins(self) -> Bins:
        """Return the histogram as numbers and their counts, without copying the table or its empty lower end."""
        used = self.octaves.amax(0).nonzero()
        first = int(used[0]) if len(used) else self.depth
        octave = torch.arange(first, self.depth, device=self.top.device)
        values = self._middle(octave[:, None], torch.arange(PER_OCTAVE, device=self.top.device))
        return Bins(values.flatten(), self.table[:, first:].flatten(1), power_of_two(self.top - 126))

    def _middle(self, octave: Tensor, step: Tensor) -> Tensor:
        """Return the middle of a bin in units of its channel's scale."""
        return (1 + (step + 0.5).double() / PER_OCTAVE) * power_of_two(octave + 1 - self.depth)

    def at(self, rank: Tensor) -> Tensor:
        """Return the numbers [C, R] at the places ``rank`` [C, R] of the sorted positive ones; 0 where negative.

        A place below the window gives its lower edge, which no number there exceeds.
        """
        place = (rank - self.below[:, None]).contiguous()
        octaves = self.octaves
        upto = octaves.cumsum(1)
        octave = torch.searchsorted(upto, place, right=True).clamp_max_(self.depth - 1)
        inside = place - (upto - octaves).gather(1, octave)
        row = self.table[torch.arange(self.channels, device=rank.device)[:, None], octave]
        step = torch.searchsorted(row.cumsum(2, dtype=torch.int64), inside[:, :, None], right=True)[:, :, 0]
        values = self._middle(octave, step) * power_of_two(self.top - 126)[:, None]
        edge = power_of_two(self.top - 125 - self.depth)[:, None]
        return torch.where(place < 0, edge, values).masked_fill_(rank < 0, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and a number."""
        return {name: getattr(self, name) for name in ("count", "top", "below", "counters")}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Histogram:
        """Return the histogram that ``state_dict`` described; it shares its tensors."""
        histogram = cls(len(state["top"]), state["top"].device)
        for name in histogram.state_dict():
            setattr(histogram, name, state[name])
        return histogram


def as_channels(x: Tensor, granularity: Granularity, key: str) -> Tensor:
    """Return ``x`` [N, ...] of the site ``key`` as [A, C, B], C = 1 per layer; no copy for dense memory formats."""
    x = x.detach()
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    if isinstance(granularity, PerLayer):
        return x.permute(order).reshape(1, 1, -1)
    dim = granularity.dim
    allowed = f"dim is 1 to {x.dim() - 1}" if x.dim() > 1 else "they have no dimension but the batch"
    require(
        -x.dim() < dim < x.dim(),
        f"{granularity} does not name a channel of {key}, whose activations are {list(x.shape)}: {allowed}; "
        "name another, or use PerLayer().",
        CalibrationError,
    )
    at, x = order.index(dim % x.dim()), x.permute(order)
    return x.reshape(prod(x.shape[:at]), x.shape[at], prod(x.shape[at + 1 :]))


def check_channels(key: str, before: int, now: int) -> None:
    """Raise CalibrationError where the number of channels of the site ``key`` changed."""
    require(
        before == now,
        f"{key} had {before} channels, a later batch {now}; calibrate on batches of one shape, or use PerLayer().",
        CalibrationError,
    )


def slices(x: Tensor) -> Iterator[Tensor]:
    """Cut ``x`` [A, C, B] into parts [a, C, b] of about ``SLICE`` numbers."""
    _, channels, inner = x.shape
    for part in x.split(max(1, SLICE // (channels * inner))):
        yield from part.split(max(1, SLICE // (len(part) * channels)), dim=2)


def shift_into(table: Tensor, shift: Tensor, into: Tensor) -> Tensor:
    """Add ``table`` to ``into``, both [C, depth, 512], whose windows end ``shift`` [C] octaves higher.

    Returns how many numbers of each channel [C] fell out at the bottom.
    """
    lost = torch.zeros(len(table), dtype=torch.int64, device=table.device)
    depth = table.shape[1]
    for step in shift.unique().tolist():
        gone = min(step, depth)
        for rows in (shift == step).nonzero().flatten().split(256):  # a copy of them all would double the memory
            into[rows, : depth - gone] += table[rows, gone:]
            lost[rows] = table[rows, :gone].sum((1, 2))
    return lost
