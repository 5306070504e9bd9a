"""Tensors inside tuples, lists, dicts, named tuples and dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["map_sizes", "map_tensors", "tensors_in", "version_of", "with_tensors"]


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return ``value`` with every tensor in it replaced by ``change`` of it; what is no tensor stays."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(part, change) for part in value))
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return type(value)(map_tensors(part, change) for part in value)
    if isinstance(value, Mapping):
        return type(value)({key: map_tensors(part, change) for key, part in value.items()})  # type: ignore[call-arg]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return dataclasses.replace(value, **{name: map_tensors(part, change) for name, part in parts.items()})
    return value


def map_sizes(shape: Any, change: Callable[[torch.Size], Any]) -> Any:
    """Return a nested shape, as ``NodeInfo`` holds it, with every size replaced by ``change`` of it."""
    if isinstance(shape, torch.Size):
        return change(shape)
    return tuple(map_sizes(part, change) for part in shape) if isinstance(shape, tuple) else shape


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in ``value``, in the order in which ``map_tensors`` meets them."""
    tensors: list[Tensor] = []
    map_tensors(value, tensors.append)
    return tensors


def with_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Return ``value`` with its tensors replaced, in order, by those of ``tensors``."""
    return map_tensors(value, lambda _: next(tensors))


def version_of(value: Tensor) -> int:
    """Return torch's count of what was written into a tensor; it has none for those of inference mode."""
    return 0 if value.is_inference() else value._version  # noqa: SLF001 (how torch tells that a tensor was changed)
