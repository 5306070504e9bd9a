"""Ways to write flattening and global pooling become nn.Flatten and adaptive average pooling."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from conversion_ext.capture.passes.batch_size import is_batch_size
from conversion_ext.graph import info, insert_after, key_of, note, refresh, replace_call

__all__ = ["Flattening"]

_POOLS: dict[int, Any] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


class Flattening:
    """``flatten(x, 1)``, ``x.view(x.size(0), -1)``, ``x.squeeze()`` and ``x.mean([2, 3])`` become modules.

    A ``squeeze()`` that does not flatten names its dimensions, without the batch.

    Reading ``view(-1, 512)``, ``squeeze()`` and means needs shapes (``meta["shape"]``); without them they stay.
    """

    def run(self, model: GraphModule) -> None:
        """Replace every such call."""
        self._replace(model)
        for node, dims in _squeezes(model):
            if dims:
                node.args = (node.args[0], dims)
            else:
                node.replace_all_uses_with(node.args[0])  # pyright: ignore[reportArgumentType] (its input, a node)
                model.graph.erase_node(node)
        self._replace(model)  # what reads the input of a squeeze() that is gone
        refresh(model)

    @staticmethod
    def _replace(model: GraphModule) -> None:
        for node, first, rest in _found(model):
            new = replace_call(model, node, first.eval(), (node.args[0],), key_of(node))
            if rest is not None:
                flat = insert_after(model, new, rest.eval(), f"{key_of(new)}.flatten")
                note(flat, key=f"{key_of(new)}.flatten")

    def ensures(self, model: GraphModule) -> list[str]:
        """No such call is left."""
        left = [f"{node.name} squeezes the batch too." for node, _ in _squeezes(model)]
        return [*left, *(f"{node.name} only flattens or pools." for node, _, _ in _found(model))]


def _squeezes(model: GraphModule) -> list[tuple[Node, tuple[int, ...]]]:
    """Return (call, dimensions to name) of ``squeeze()`` of everything: of one sample it would drop the batch too."""
    squeezes = []
    for node in model.graph.nodes:
        source = node.args[0] if node.args else None
        # With its kind of call: a module may have the name of a method.
        named = (node.op, node.target) in (("call_function", torch.squeeze), ("call_method", "squeeze"))
        plain = named and len(node.args) == 1 and not node.kwargs
        if plain and isinstance(source, Node) and info(source).is_tensor:
            squeezes.append((node, tuple(d for d, size in enumerate(info(source).shape) if d and size == 1)))
    return squeezes


def _found(model: GraphModule) -> list[tuple[Node, nn.Module, nn.Module | None]]:
    """Return (call, module in its place, module after that)."""
    matches = []
    for node in model.graph.nodes:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        function = node.op == "call_function" and getattr(torch, name, None) is node.target
        if not (function or node.op == "call_method") or not node.args or not isinstance(node.args[0], Node):
            continue
        if name == "mean":
            pool, flatten = _pool(node)
        else:
            pool, flatten = _flatten(str(name), node), None
        if pool is not None:
            matches.append((node, pool, flatten))
    return matches


def _flatten(name: str, node: Node) -> nn.Module | None:
    """Return the Flatten that stands for a call, or None."""
    source: Any = node.args[0]
    shape = info(source).shape
    if name == "flatten":
        given: dict[str, Any] = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | dict(node.kwargs)
        start, end = given.get("start_dim", 0), given.get("end_dim", -1)
        static = isinstance(start, int) and isinstance(end, int)
        return nn.Flatten(start, end) if static and _after_batch(start, shape) else None
    if name == "squeeze" and len(node.args) == 1 and not node.kwargs:
        # The batch counts as larger than 1: for one sample squeeze() would drop it, which nobody means.
        single = shape is not None and len(shape) > 2 and shape[1] > 1 and math.prod(shape[2:]) == 1
        return nn.Flatten() if single else None
    if name not in ("view", "reshape"):
        return None
    sizes = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple | list) else node.args[1:]
    if len(sizes) != 2 or (shape is not None and len(shape) < 2):
        return None
    result = info(node).shape
    kept = sizes[0] == -1 and shape is not None and result is not None and result[0] == shape[0]
    return nn.Flatten() if kept or is_batch_size(sizes[0], source) else None


def _after_batch(dim: int, shape: Any) -> bool:
    """Return whether a dimension is known not to be the batch."""
    return dim >= 1 or (dim < 0 and shape is not None and dim + len(shape) >= 1)


def _pool(node: Node) -> tuple[nn.Module | None, nn.Module | None]:
    """Return the pooling, and the flattening after it, that stand for a mean over all spatial dimensions."""
    source: Any = node.args[0]
    given: dict[str, Any] = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | dict(node.kwargs)
    dims, keep = given.get("dim"), given.get("keepdim", False)
    shape = info(source).shape
    if not isinstance(shape, torch.Size) or dims is None or given.get("dtype") is not None:
        return None, None
    rank = len(shape)
    dims = [dims] if isinstance(dims, int) else list(dims)
    if rank - 2 not in _POOLS or sorted(dim % rank for dim in dims) != list(range(2, rank)):
        return None, None
    return _POOLS[rank - 2](1), None if keep else nn.Flatten()
