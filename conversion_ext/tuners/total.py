"""Sums over the data of all processes: the same bits whoever adds what, and in which order."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from conversion_ext.distributed import added, gathered
from conversion_ext.errors import CalibrationError, require
from conversion_ext.tuners.shelf import Shelf

__all__ = ["total"]

BITS = 62  # of an int64 that the largest sum may take


def total(terms: Iterable[tuple[Tensor, ...]], shelf: Shelf, device: torch.device) -> tuple[Tensor, ...]:
    """Return the sums of the first, second, ... tensors of all ``terms`` of all processes, in float64.

    Integers add up to the same in any order, floats do not: every tensor is rounded to multiples of one power of two,
    the smallest for which no sum of so many numbers of the size of the largest can overflow. That costs 2^-62 of the
    largest sum possible, less than adding in float64 does. Raises CalibrationError where a term is NaN or infinite.
    """
    count, shapes, largest = 0, set[tuple[torch.Size, ...]](), list[float]()
    for count, term in enumerate(terms, start=1):
        shapes.add(tuple(value.shape for value in term))
        sizes = [float(value.abs().amax()) for value in term]
        sizes = [size if math.isfinite(size) else math.inf for size in sizes]
        largest = [max(pair) for pair in zip(largest or sizes, sizes, strict=True)]
        for place, value in enumerate(term):
            shelf["term", place, count] = value
    told = gathered((count, shapes, largest))
    everywhere = sum(number for number, _, _ in told)
    kinds = set[tuple[torch.Size, ...]]().union(*(there for _, there, _ in told))
    require(
        len(kinds) == 1,
        f"What a tuner adds up has the shapes {sorted(map(str, kinds))}; give calibration data of one size.",
        CalibrationError,
    )
    sums = []
    for place, shape in enumerate(kinds.pop()):
        most = max(sizes[place] for _, _, sizes in told if sizes)
        require(
            math.isfinite(most),
            "A tuner met values that are NaN or infinite on the calibration data; clean the data, or use a wider type.",
            CalibrationError,
        )
        unit = 2.0 ** min(1000, BITS - (everywhere - 1).bit_length() - math.frexp(most)[1])
        whole = torch.zeros(shape, dtype=torch.int64, device=device)
        for index in range(1, count + 1):
            whole += (shelf["term", place, index].to(device, torch.float64) * unit).round_().long()
            shelf.pop(("term", place, index))
        sums.append(added(whole).double() / unit)
    return tuple(sums)
