"""Which values of a graph share memory: a fact of storage, found while the graph runs, and not of names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conversion_ext.graph.values import tensors_in

__all__ = ["Memory", "Storages", "overlap"]


@dataclass(frozen=True)
class Memory:
    """Where the elements of a tensor lie: the number of its storage, and where they lie in it."""

    storage: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def overlaps(self, other: Memory) -> bool:
        """Return whether an element of one is an element of the other."""
        return self.storage == other.storage and not set(self.elements()).isdisjoint(other.elements())

    def elements(self) -> list[int]:
        """Return the places of all elements in the storage, in order."""
        places = torch.full((1,), self.offset)
        for size, stride in zip(self.shape, self.stride, strict=True):
            places = (places[:, None] + stride * torch.arange(size)).flatten()
        return places.tolist()


class Storages:
    """Numbers for the storages met in one run, which it keeps alive, or their places would be used again."""

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[int, Any]] = {}

    def memory(self, value: Any) -> tuple[Memory, ...]:
        """Return where the tensors in ``value`` lie."""
        return tuple(self._memory(tensor) for tensor in tensors_in(value) if tensor.layout is torch.strided)

    def _memory(self, tensor: Tensor) -> Memory:
        storage = tensor.untyped_storage()  # one Python object for all tensors that share it, on any device
        number, _ = self._numbers.setdefault(id(storage), (len(self._numbers), storage))
        return Memory(number, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())


def overlap(one: Iterable[Memory], other: Iterable[Memory]) -> bool:
    """Return whether any of these tensors shares an element with one of those."""
    others = list(other)
    return any(a == b or a.overlaps(b) for a in one for b in others)
