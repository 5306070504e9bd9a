"""Graphs, names and numbers of NIR in the forms that torch takes."""

from __future__ import annotations

import keyword
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conversion_ext.errors import UnsupportedError, require

__all__ = ["compact", "flattened", "identifier", "in_order", "plain_value", "shape_of", "tensor_of", "whole"]


def flattened(nir: Any, made: Any) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return nodes and edges with the graphs inside a graph taken apart."""
    nodes: dict[str, Any] = {}
    edges = [(str(a), str(b)) for a, b in made.edges]
    for name, node in made.nodes.items():
        if not isinstance(node, nir.NIRGraph):
            nodes[str(name)] = node
            continue
        inner, wires = flattened(nir, node)
        ends = {kind: {n for n, v in inner.items() if isinstance(v, kind)} for kind in (nir.Input, nir.Output)}
        first = [b for a, b in wires if a in ends[nir.Input]]
        last = [a for a, b in wires if b in ends[nir.Output]]
        nodes |= {f"{name}.{n}": v for n, v in inner.items() if n not in ends[nir.Input] | ends[nir.Output]}
        inside = [(f"{name}.{a}", f"{name}.{b}") for a, b in wires
                  if a not in ends[nir.Input] and b not in ends[nir.Output]]  # fmt: skip
        into = [(a, f"{name}.{n}") for a, b in edges if b == name for n in first]
        out = [(f"{name}.{n}", b) for a, b in edges if a == name for n in last]
        edges = [(a, b) for a, b in edges if name not in (a, b)] + inside + into + out
    return nodes, edges


def in_order(nodes: dict[str, Any], edges: list[tuple[str, str]]) -> list[str]:
    """Return the names of nodes, each behind all that it reads; raise UnsupportedError where there is a loop."""
    waiting = {name: {a for a, b in edges if b == name} for name in nodes}
    order: list[str] = []
    while waiting:
        ready = [name for name, needs in waiting.items() if needs <= set(order)]
        loop = ", ".join(sorted(waiting))
        require(bool(ready), f"The NIR nodes {loop} form a loop; feed-forward graphs are read.", UnsupportedError)
        order += ready
        for name in ready:
            del waiting[name]
    return order


def compact(value: Tensor) -> Tensor:
    """Return [] where ``value`` is one number everywhere, else ``value``."""
    return value.flatten()[0] if bool((value == value.flatten()[0]).all()) else value


def shape_of(value: Any) -> list[int]:
    """Return a shape of NIR as whole numbers."""
    return [int(size) for size in np.asarray(value).reshape(-1)]


def whole(value: Any) -> Any:
    """Return numbers of NIR, which may be arrays, as an int or a tuple."""
    array = np.asarray(value)
    return int(array) if array.ndim == 0 else tuple(int(v) for v in array)


def tensor_of(value: Any) -> Tensor:
    """Return numbers of NIR in float32."""
    return torch.from_numpy(np.array(np.asarray(value), dtype=np.float32))


def plain_value(value: Any) -> Any:
    """Return a value of HDF5 as Python's own."""
    single = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim)
    value = value.item() if single else value
    return value.decode() if isinstance(value, bytes) else value


def identifier(name: str) -> str:
    """Return the name of a node as one that Python code can hold."""
    plain = "".join(c if c.isalnum() else "_" for c in name)
    fits = plain.isidentifier() and not keyword.iskeyword(plain) and plain != "steps"
    return plain if fits else f"n{plain}"
