"""Nested arguments and results: which tensors they hold, and in which containers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["leaves_of", "map_leaves"]


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return ``tree`` with ``function`` applied to everything that is no container.

    Tuples (``torch.Size`` too), named tuples, lists, dicts and slices are containers; a dataclass becomes a dict.
    """
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_leaves(function, value) for value in tree))
    if isinstance(tree, tuple):
        return tuple(map_leaves(function, value) for value in tree)
    if isinstance(tree, list):
        return [map_leaves(function, value) for value in tree]
    if isinstance(tree, Mapping):
        return {key: map_leaves(function, value) for key, value in tree.items()}
    if isinstance(tree, slice):
        return slice(*(map_leaves(function, value) for value in (tree.start, tree.stop, tree.step)))
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
        return map_leaves(function, fields)
    return function(tree)


def leaves_of(tree: Any) -> list[Any]:
    """Return everything in ``tree`` that is no container, in order."""
    leaves: list[Any] = []
    map_leaves(leaves.append, tree)
    return leaves
