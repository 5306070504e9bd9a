"""A mergeable histogram of positive numbers over the leading bits of their float32 pattern, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Bins", "Histogram"]

# A float32 is sign | 8 exponent bits | 23 mantissa bits. Without the last 14 bits the pattern of a positive number
# is octave * 512 + step: 512 bins per octave, whose middle is within 1/1024 = 0.098 % of all they hold.
DROPPED_BITS = 14
PER_OCTAVE = 1 << (23 - DROPPED_BITS)
LAYER_OCTAVES = 254  # every normal float32
CHANNEL_OCTAVES = 24  # 22,720 channels of a ResNet-50 x 24 x 512 int32 counters are 1.04 GiB
MOST_ROWS = 1 << 20  # channels x octaves of one table: 2 GiB, and an index below `NOT_POSITIVE`
NOT_POSITIVE = (1 << 30) - 1
INT32_MAX = (1 << 31) - 1
SLICE = 1 << 17  # elements worked on at a time: they and their bins stay in a cache of 2 MiB


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
    of its largest number; ``depth`` is what the data needs, at most 24 for many channels and 254 (all) for one.
    What falls below a full window is counted in ``below``. Numbers under 2^-126 count as zero. The final state
    does not depend on the order or the grouping in which numbers came, since a window only ever moves up.
    """

    def __init__(self, channels: int, device: torch.device | None = None) -> None:
        self.channels = channels
        self.limit = LAYER_OCTAVES if channels == 1 else max(1, min(CHANNEL_OCTAVES, MOST_ROWS // channels))
        self.count = 0  # numbers seen per channel, zeros and negative ones included
        self.depth = 0
        self.top = torch.full((channels,), -1, dtype=torch.int32, device=device)
        self.low = torch.full_like(self.top, LAYER_OCTAVES)
        self.below = torch.zeros(channels, dtype=torch.int64, device=device)
        self.counters = torch.zeros(1, dtype=torch.int32, device=device)  # the table and one slot for the rest
        self._place(self.top)

    @property
    def table(self) -> Tensor:
        """The counters [C, depth, 512], lowest octave first (a view)."""
        return self.counters[:-1].view(self.channels, self.depth, PER_OCTAVE)

    @property
    def positive(self) -> Tensor:
        """How many positive numbers each channel saw, [C] int64."""
        return self.table.sum((1, 2)) + self.below

    def add(self, x: Tensor, largest: Tensor) -> None:
        """Count the finite numbers ``x`` [A, C, B] of any float dtype, ``largest`` [C] being their maxima."""
        self._enlarge(self.count + x.shape[0] * x.shape[2])
        pattern = largest.float().view(torch.int32) >> DROPPED_BITS
        octave = (pattern // PER_OCTAVE - 1).clamp_min(-1).int()
        self._fit(torch.maximum(self.top, octave), self.low)
        for part in slices(x):
            self._add(part)
        self.counters[-1] = 0

    def _add(self, x: Tensor) -> None:
        # No boolean masks: selecting by one costs 7 ns per number here, integer arithmetic 0.2 ns. Zero, subnormal
        # and negative numbers have negative bins after the subtraction; masking the sign makes these huge.
        bins = (x.float().view(torch.int32) >> DROPPED_BITS).sub_(PER_OCTAVE).bitwise_and_(NOT_POSITIVE)
        lowest = bins.amin((0, 2))
        low = torch.minimum(self.low, lowest // PER_OCTAVE)
        if not torch.equal(low, self.low):
            self._fit(self.top, low)
        if self.depth == self.limit and bool((lowest < self.floor).any()):
            under = (self.floor[:, None] - bins).clamp_(0, 1)
            self.below += under.sum((0, 2))
            bins += under * NOT_POSITIVE
        bins.add_(self.base[:, None]).clamp_max_(len(self.counters) - 1)
        self.counters.index_add_(0, bins.flatten(), self.counters.new_ones(1).expand(bins.numel()))

    def merge(self, other: Histogram) -> None:
        """Add all that ``other`` counted; ``other`` stays as it is."""
        top, low = (getattr(other, name).to(self.top.device) for name in ("top", "low"))
        self._enlarge(self.count + other.count)
        self._fit(torch.maximum(self.top, top), torch.minimum(self.low, low))
        lost = pour(other.table.to(self.top.device), self.top - top, self.table)
        self.below += other.below.to(self.top.device) + lost

    def _enlarge(self, count: int) -> None:
        """Set ``count`` and spill the counters to int64 before one of them could overflow."""
        self.count = count
        if count > INT32_MAX and self.counters.dtype == torch.int32:
            self.counters = self.counters.long()

    def _fit(self, top: Tensor, low: Tensor) -> None:
        """Move the windows up to the octaves ``top`` [C] and deepen the table down to ``low`` [C] as far as allowed."""
        depth = min(self.limit, max(0, int((top - low).amax()) + 1))
        shift, self.top, self.low = top - self.top, top, low
        if depth > self.depth:
            old, self.depth = self.table, depth
            self.counters = self.counters.new_zeros(self.channels * depth * PER_OCTAVE + 1)
            self.below += pour(old, shift, self.table)
        elif len(rows := shift.nonzero().flatten()):
            old = self.table[rows]
            new = torch.zeros_like(old)
            self.below[rows] += pour(old, shift[rows], new)
            self.table[rows] = new
        self._place(top)

    def _place(self, top: Tensor) -> None:
        """Note where the windows begin: as a bin number, and as the distance to the position in the table."""
        self.floor = (top + 1 - self.depth) * PER_OCTAVE
        start = torch.arange(self.channels, dtype=torch.int32, device=top.device) * (self.depth * PER_OCTAVE)
        self.base = start - self.floor

    def bins(self) -> Bins:
        """Return the histogram as numbers and their counts, without copying the table."""
        index = torch.arange(self.depth * PER_OCTAVE, device=self.top.device)
        step = (index % PER_OCTAVE + 0.5).double() / PER_OCTAVE
        values = (1 + step) * power_of_two(index // PER_OCTAVE + 1 - self.depth)
        return Bins(values, self.table.flatten(1), power_of_two(self.top - 126))

    def at(self, rank: Tensor) -> Tensor:
        """Return the numbers [C, R] at the places ``rank`` [C, R] of the sorted positive ones; 0 where negative.

        A place below the window gives its lower edge, which no number there exceeds.
        """
        values, counts, scale = self.bins()
        if not self.depth:
            return torch.zeros_like(rank, dtype=torch.float64)
        place = rank - self.below[:, None]
        index = torch.empty_like(rank)
        for some in torch.arange(self.channels).split(64):  # a running sum of all channels would need 8 bytes a bin
            rows = slice(int(some[0]), int(some[-1]) + 1)
            total = counts[rows].cumsum(1, dtype=torch.int64)
            index[rows] = torch.searchsorted(total, place[rows].contiguous(), right=True)
        edge = power_of_two(self.top - 125 - self.depth)[:, None]
        found = torch.where(place < 0, edge, values[index.clamp_max_(len(values) - 1)] * scale[:, None])
        return found.masked_fill_(rank < 0, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and numbers."""
        return {name: getattr(self, name) for name in ("count", "depth", "top", "low", "below", "counters")}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Histogram:
        """Return the histogram that ``state_dict`` described; it shares its tensors."""
        histogram = cls(len(state["top"]), state["top"].device)
        for name in histogram.state_dict():
            setattr(histogram, name, state[name])
        histogram._place(histogram.top)
        return histogram


def slices(x: Tensor) -> Iterator[Tensor]:
    """Cut ``x`` [A, C, B] into parts [a, C, b] of about ``SLICE`` numbers."""
    _, channels, inner = x.shape
    for part in x.split(max(1, SLICE // (channels * inner))):
        yield from part.split(max(1, SLICE // (len(part) * channels)), dim=2)


def pour(table: Tensor, shift: Tensor, into: Tensor) -> Tensor:
    """Add ``table`` [C, D, 512] to ``into`` [C, depth, 512], whose windows end ``shift`` [C] octaves higher.

    Returns how many numbers of each channel [C] fell out at the bottom.
    """
    lost = torch.zeros(len(table), dtype=torch.int64, device=table.device)
    have, depth = table.shape[1], into.shape[1]
    for step in shift.unique().tolist():
        keep = max(0, min(have, depth - step))
        for rows in (shift == step).nonzero().flatten().split(256):
            into[rows, depth - step - keep : depth - step] += table[rows, have - keep :]
            lost[rows] = table[rows, : have - keep].sum((1, 2))
    return lost


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^exponent in float64, exactly, for integers (``exp2`` may round)."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)
