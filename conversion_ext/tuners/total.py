"""Sums over the data of all processes: the same bits whoever adds what, and in which order."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from conversion_ext.distributed import added, gathered, greatest
from conversion_ext.errors import CalibrationError, require
from conversion_ext.statistics import power_of_two
from conversion_ext.tuners.shelf import Shelf

__all__ = ["total"]

BITS = 62  # of an int64 that the largest sum may take


def total(terms: Iterable[tuple[Tensor, ...]], shelf: Shelf, device: torch.device) -> tuple[Tensor, ...]:
    """Return the sums of the first, second, ... tensors of all ``terms`` of all processes, in float64.

    Integers add up to the same in any order, floats do not: each entry is rounded to multiples of a power of two, the
    smallest for which no sum of so many numbers of the size of its largest can overflow. That costs 2^-62 of the
    largest sum possible, less than adding in float64 does. Raises CalibrationError where a term is NaN or infinite.
    """
    count, shapes, largest = 0, set[tuple[torch.Size, ...]](), list[Tensor]()
    for count, term in enumerate(terms, start=1):
        shapes.add(tuple(value.shape for value in term))
        sizes = [_size(value).to(device) for value in term]
        if len(shapes) == 1:
            largest = [torch.maximum(*pair) for pair in zip(largest or sizes, sizes, strict=True)]
        for place, value in enumerate(term):
            shelf["term", place, count] = value
    told = gathered((count, shapes))
    bits = BITS - (sum(number for number, _ in told) - 1).bit_length()
    kinds = set[tuple[torch.Size, ...]]().union(*(there for _, there in told))
    require(
        len(kinds) == 1,
        f"What a tuner adds up has the shapes {sorted(map(str, kinds))}; give calibration data of one size.",
        CalibrationError,
    )
    sums = []
    for place, shape in enumerate(kinds.pop()):
        most = greatest(largest[place] if largest else torch.zeros(shape, dtype=torch.float64, device=device))
        require(
            bool(torch.isfinite(most).all()),
            "A tuner met values that are NaN or infinite on the calibration data; clean the data, or use a wider type.",
            CalibrationError,
        )
        unit = power_of_two((bits - torch.frexp(most).exponent).clamp_max_(1000))
        whole = torch.zeros(shape, dtype=torch.int64, device=device)
        for index in range(1, count + 1):
            whole += (shelf["term", place, index].to(device, torch.float64) * unit).round_().long()
            shelf.pop(("term", place, index))
        sums.append(added(whole).double() / unit)
    return tuple(sums)


def _size(value: Tensor) -> Tensor:
    """Return the absolute values in float64, infinite where there is no number."""
    return value.double().abs().nan_to_num_(nan=torch.inf, posinf=torch.inf)
