"""Large batches: in slices whose activations fit a cache, one after the other, and joined as if they had been one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from conversion_ext.graph.values import tensors_in, with_tensors
from conversion_ext.nn.stateful import Signature

__all__ = ["joined", "joined_state", "slices"]


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


def joined(values: Sequence[Any], dim: int) -> Any:
    """Return nested tensors of slices, each with its samples in ``dim``, as those of the whole batch."""
    columns = zip(*map(tensors_in, values), strict=True)
    tensors: Iterator[Tensor] = iter([torch.cat(column, dim) for column in columns])
    return with_tensors(values[0], tensors)


def joined_state(states: Sequence[Any]) -> Any:
    """Return what ``NetworkState.values`` gave for each slice as what the whole batch would have left."""
    first = states[0]
    if isinstance(first, Tensor):
        return torch.cat(list(states))
    if isinstance(first, Signature):
        return first._replace(shape=torch.Size((sum(state.shape[0] for state in states), *first.shape[1:])))
    if isinstance(first, dict):
        return {name: joined_state([state[name] for state in states]) for name in first}
    if isinstance(first, tuple | list):
        return type(first)(joined_state(column) for column in zip(*states, strict=True))
    return first
