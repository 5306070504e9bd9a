"""The tensors in the arguments of a network, however they are nested."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conversion_ext.graph.structure import leaves_of, map_leaves

__all__ = ["Arguments", "called_with", "device_of", "streamed", "tensors_of", "with_arrays_as_tensors"]


class Arguments(tuple[Any, ...]):
    """The arguments of one call in their order; the last of them are passed by the names in ``keywords``."""

    keywords: tuple[str, ...]

    def __new__(cls, values: Iterable[Any], keywords: tuple[str, ...] = ()) -> Arguments:  # noqa: D102
        self = super().__new__(cls, values)
        self.keywords = keywords
        return self


def called_with(model: Callable[..., Any], arguments: tuple[Any, ...], like: tuple[Any, ...] | None = None) -> Any:
    """Return ``model(*arguments)``, the last by keyword where they, or the call that they are ``like``, have names."""
    names = getattr(arguments if like is None else like, "keywords", ())
    split = len(arguments) - len(names)
    return model(*arguments[:split], **dict(zip(names, arguments[split:], strict=True)))


def tensors_of(arguments: Any) -> tuple[Tensor, ...]:
    """Return all tensors of nested tuples, lists and dicts, in order; arrays of numpy become tensors."""
    return tuple(torch.as_tensor(leaf) for leaf in leaves_of(arguments) if isinstance(leaf, Tensor | np.ndarray))


def with_arrays_as_tensors(arguments: Any) -> Any:
    """Return nested arguments with arrays of numpy as tensors."""
    return map_leaves(lambda leaf: torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf, arguments)


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a network computes on: that of its first parameter, the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def streamed(arguments: Any, device: torch.device) -> Any:
    """Return nested arguments with their tensors on the CPU copied to ``device``, pinned memory while it computes.

    Tensors on another device stay there: which of two accelerators was meant is the user's to say.
    """

    def moved(leaf: Any) -> Any:
        there = not isinstance(leaf, Tensor) or leaf.device.type != "cpu"
        return leaf if there else leaf.to(device, non_blocking=True)

    return arguments if device.type == "cpu" else map_leaves(moved, arguments)
