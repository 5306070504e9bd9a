"""Large batches: in slices whose activations fit a cache, one after the other, and joined as if they had been one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from conversion_ext.backends.base import lasting
from conversion_ext.graph.values import map_tensors, tensors_in, with_tensors

__all__ = ["Joined", "slices"]

NONE = torch.empty(0)


def slices(inputs: tuple[Any, ...], most: int) -> list[tuple[Any, ...]]:
    """Return ``inputs`` in slices of at most ``most`` samples, of sizes that differ by one; all of it if it cannot be.

    Every tensor must hold one entry for each sample; what is no tensor goes into every slice.
    """
    sizes = {len(value) if value.dim() else 0 for value in inputs if isinstance(value, Tensor)}
    N = next(iter(sizes), 0)
    if len(sizes) != 1 or N <= most:
        return [inputs]
    count = -(-N // most)
    parts = [value.tensor_split(count) if isinstance(value, Tensor) else [value] * count for value in inputs]
    return list(zip(*parts, strict=True))


class Joined:
    """Nested tensors of slices, put together as those of the whole batch of N samples.

    A slice is copied to its place when it is added, so nothing of it need be kept; what was made in ``room`` is there.
    """

    def __init__(self, N: int) -> None:
        self.N, self.first, self.n = N, 0, 0
        self.rooms: dict[Any, Tensor] = {}
        self.entered: set[Any] = set()
        self.nests: dict[int, tuple[Any, list[Tensor]]] = {}

    def begin(self, n: int) -> None:
        """Go on to the next slice, which has n samples."""
        self.first, self.n = self.first + self.n, n
        self.entered.clear()

    def room(self, name: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return memory for x [n, ...] of this slice within that of the whole batch; a name has it once per slice."""
        if name in self.entered:  # what is there may still be read
            return lasting(x, dtype)
        self.entered.add(name)
        if name not in self.rooms:
            self.rooms[name] = self._whole(x, 0, dtype)
        return self._place(self.rooms[name], x, 0)

    def add(self, values: Any, dim: int) -> None:
        """Take in nested tensors of this slice, its samples in dimension ``dim``: once per slice and dimension."""
        parts = tensors_in(values)
        if dim not in self.nests:
            made = {id(room.untyped_storage()): room for room in self.rooms.values()}
            wholes = [made.get(id(part.untyped_storage())) for part in parts]
            wholes = [self._whole(x, dim, x.dtype) if w is None else w for x, w in zip(parts, wholes, strict=True)]
            self.nests[dim] = map_tensors(values, lambda _: NONE), wholes
        for whole, part in zip(self.nests[dim][1], parts, strict=True):
            place = self._place(whole, part, dim)
            if place.data_ptr() != part.data_ptr():
                place.copy_(part)

    def values(self, dim: int) -> Any:
        """Return what was added as that of the whole batch."""
        nest, wholes = self.nests[dim]
        return with_tensors(nest, iter(wholes))

    def _whole(self, x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        """Return memory for the whole batch, in the layout of x."""
        shape = list(x.shape)
        shape[dim] = shape[dim] // self.n * self.N
        last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        form = torch.channels_last if last else torch.contiguous_format
        with torch.inference_mode(False):
            return torch.empty(shape, dtype=dtype, device=x.device, memory_format=form)

    def _place(self, whole: Tensor, x: Tensor, dim: int) -> Tensor:
        rows = x.shape[dim] // self.n
        return whole.narrow(dim, self.first * rows, self.n * rows)
