"""Sums over the data of all processes: the same bits for every order and every partition."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from conversion_ext.data.distributed import added, gathered, greatest
from conversion_ext.errors import CalibrationError, require
from conversion_ext.exact import power_of_two
from conversion_ext.tuners.tensor_store import TensorStore

__all__ = ["exact_sum", "exact_sum_bounded", "largest_magnitude"]

BITS = 53  # of a float64, all of which the largest sum may take


def exact_sum(terms: Iterable[tuple[Tensor, ...]], store: TensorStore, device: torch.device) -> tuple[Tensor, ...]:
    """Return the sums of the first, second, ... tensors of all ``terms`` of all processes, in float64.

    Floating-point sums depend on the order of addition. To make the result identical for any order, every entry is
    first rounded to a multiple of u = 2^(e + b - 53), where 2^e bounds the largest term and 2^b the number of terms.
    All partial sums are then multiples of u below 2^53 u, hence exact in float64. Cost: an error of at most u/2 per
    term. Terms are kept until all have been seen: see ``exact_sum_bounded``.
    Raises CalibrationError where a term is NaN or infinite.
    """
    count, shapes, largest = 0, set[tuple[torch.Size, ...]](), list[Tensor]()
    for count, term in enumerate(terms, start=1):
        shapes.add(tuple(value.shape for value in term))
        sizes = [_size(value).to(device) for value in term]
        if len(shapes) == 1:
            largest = [torch.maximum(*pair) for pair in zip(largest or sizes, sizes, strict=True)]
        for place, value in enumerate(term):
            store["term", place, count] = value
    counts = gathered((count, shapes))
    kinds = set[tuple[torch.Size, ...]]().union(*(there for _, there in counts))
    require(
        len(kinds) == 1,
        f"What a tuner adds up has the shapes {sorted(map(str, kinds))}; give calibration data of one size.",
        CalibrationError,
    )
    sums = []
    for place, shape in enumerate(kinds.pop()):
        most = greatest(largest[place] if largest else torch.zeros(shape, dtype=torch.float64, device=device))
        sums.append(exact_sum_bounded(_taken(store, place, count), shape, most, sum(number for number, _ in counts)))
    return tuple(sums)


def exact_sum_bounded(terms: Iterable[Tensor], shape: Sequence[int], bound: Tensor, count: int) -> Tensor:
    """Return the sum of all ``terms`` of all processes, in ``shape``, as ``exact_sum`` does, without keeping any.

    ``bound`` (float64, broadcast) is not exceeded by an entry of a term, ``count`` is the most terms that there can be;
    both are the same in all processes.
    """
    require(
        bool(torch.isfinite(bound).all()),
        "A tuner met values that are NaN or infinite on the calibration data; clean the data, or use a wider type.",
        CalibrationError,
    )
    bits = max(2, (count - 1).bit_length())
    # Adding a number and taking it away again rounds to multiples of its last bit.
    shift = 1.5 * power_of_two((torch.frexp(bound).exponent + bits + 52 - BITS).clamp_min_(-960))
    sums = bound.new_zeros(shape)
    for term in terms:
        sums += (term.to(bound) + shift).sub_(shift)
    return added(sums)


def largest_magnitude(values: Iterable[Tensor], shape: Sequence[int], device: torch.device) -> Tensor:
    """Return the largest absolute value of each entry over all ``values`` of all processes; infinite for NaN."""
    most = torch.zeros(shape, dtype=torch.float64, device=device)
    for value in values:
        torch.maximum(most, _size(value).to(device), out=most)
    return greatest(most)


def _taken(store: TensorStore, place: int, count: int) -> Iterable[Tensor]:
    for index in range(1, count + 1):
        yield store["term", place, index]
        store.pop(("term", place, index))


def _size(value: Tensor) -> Tensor:
    """Return the absolute values in float64, infinite where there is no number."""
    return value.double().abs().nan_to_num_(nan=torch.inf, posinf=torch.inf)
