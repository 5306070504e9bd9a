"""The batch goes back to dimension 0 where a network moves it: time is folded into that dimension."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from conversion_ext.capture.passes.base import layer_of
from conversion_ext.graph import carry, info, refresh

__all__ = ["BatchFirst"]

# Layers and functions that work on each position alone, so that positions may stand in another order.
_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm)
_POINTWISE = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.LeakyReLU, nn.Dropout,
              nn.Identity)  # fmt: skip
_FUNCTIONS = {F.relu, F.gelu, F.silu, F.dropout, torch.relu, torch.sigmoid, torch.tanh, "relu", "sigmoid", "tanh",
              "contiguous"}  # fmt: skip
_SUMS = {
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    torch.add,
    torch.sub,
    torch.mul,
    "add",
    "sub",
    "mul",
}


class BatchFirst:
    """A permutation that moves the batch away from dimension 0 is undone, or done later, where it changes nothing.

    ``qkv.permute(2, 0, 3, 1, 4)`` of which single entries are taken becomes the entries, each permuted. Behind
    ``x.transpose(0, 1)`` layers that work on each position alone work on x, until the batch is back.
    """

    def run(self, model: GraphModule) -> None:
        """Rewrite every such permutation that is followed by operations known to allow it."""
        for node, order in list(_moves(model)):
            _take_entries(model, node, order)
        _delay(model)
        refresh(model)

    def ensures(self, model: GraphModule) -> list[str]:
        """No permutation is left whose entries alone are used."""
        return [f"{node.name} moves the batch." for node, _ in _moves(model) if _entries(node) is not None]


def _moves(model: GraphModule) -> Iterator[tuple[Node, tuple[int, ...]]]:
    """Iterate over (permutation, its order) of those that move the batch from dimension 0."""
    for node in model.graph.nodes:
        order, source = _order(node), node.args[0] if node.args else None
        if order is not None and order[0] != 0 and isinstance(source, Node) and info(source).batch:
            yield node, order


def _order(node: Node) -> tuple[int, ...] | None:
    """Return the order of dimensions that ``node`` makes of its input, or None if it is not a permutation."""
    source = node.args[0] if node.args else None
    shape = info(source).shape if isinstance(source, Node) else None
    if not isinstance(shape, torch.Size):
        return None
    dims = len(shape)
    if node.target in ("permute", torch.permute):
        given: Any = node.args[1:] or tuple(node.kwargs.values())
        flat = given[0] if len(given) == 1 and isinstance(given[0], Sequence) else given
        return tuple(d % dims for d in flat) if all(isinstance(d, int) for d in flat) else None
    if node.target in ("transpose", torch.transpose, "swapaxes", torch.swapaxes) and len(node.args) == 3:
        exchanged: Any = node.args[1:]
        first, second = (d % dims for d in exchanged)
        order = list(range(dims))
        order[first], order[second] = second, first
        return tuple(order)
    return None


def _entries(node: Node) -> list[tuple[Node, int]] | None:
    """Return (user, index) where all that is used of ``node`` are single entries of dimension 0, or None."""
    entries: list[tuple[Node, int]] = []
    for user in node.users:
        index: Any = user.args[1] if len(user.args) > 1 else None
        if user.target is operator.getitem and isinstance(index, int):
            entries.append((user, index))
        elif user.target in ("unbind", torch.unbind) and user.args[1:] in ((), (0,)) and not user.kwargs.get("dim"):
            if not all(part.target is operator.getitem for part in user.users):
                return None
            chosen: list[Any] = [(part, part.args[1]) for part in user.users]
            entries += chosen
        else:
            return None
    return entries


def _take_entries(model: GraphModule, node: Node, order: tuple[int, ...]) -> None:
    """Take entries of the tensor before it is permuted, then permute what is left."""
    entries = _entries(node)
    away, *rest = order
    if not entries or rest[0] != 0:
        return
    left = tuple(d - (d > away) for d in rest)
    source: Any = node.args[0]
    with model.graph.inserting_before(node):
        parts = model.graph.call_function(torch.unbind, (source, away))
    shape = info(source).shape
    carry(node, parts, shape=(torch.Size([*shape[:away], *shape[away + 1 :]]),) * shape[away], batch=0)
    for user, index in entries:
        with model.graph.inserting_before(user):
            part = model.graph.call_function(operator.getitem, (parts, index))
            carry(user, part, shape=info(parts).shape[0], batch=info(source).batch, key="")
            new = model.graph.call_method("permute", (part, *left))
        carry(user, new, batch=info(source).batch)
        user.replace_all_uses_with(new)
    model.graph.eliminate_dead_code()


def _delay(model: GraphModule) -> None:
    """Let what works on each position alone work on the tensor whose batch is in dimension 0."""
    first: dict[Node, Node] = {}  # a tensor with the batch in dimension 1 -> the same with the first two exchanged
    for node in list(model.graph.nodes):
        order = _order(node)
        source: Any = node.args[0] if node.args else None
        if order is not None and order[:2] == (1, 0):
            if source in first:
                _replace(model, node, first[source], order[2:])
            elif info(source).batch and order[2:] == tuple(range(2, len(order))):
                first[node] = source
        elif any(operand in first for operand in node.all_input_nodes) and _positionwise(model, node, first):
            with model.graph.inserting_before(node):
                new = model.graph.node_copy(node, lambda n: first.get(n, n))
            rows = max(info(first[operand]).batch or 0 for operand in node.all_input_nodes if operand in first)
            carry(node, new, shape=_exchanged(info(node).shape), batch=rows)
            first[node] = new
        elif source in first and node.target is operator.getitem:
            _replace_getitem(model, node, first[source])


def _replace(model: GraphModule, node: Node, new: Node, rest: tuple[int, ...]) -> None:
    """Let the users of a permutation that brings the batch back read ``new``, its further dimensions in order."""
    if rest != tuple(range(2, 2 + len(rest))):
        with model.graph.inserting_before(node):
            new = model.graph.call_method("permute", (new, 0, 1, *rest))
        carry(node, new)
    node.replace_all_uses_with(new)


def _replace_getitem(model: GraphModule, node: Node, source: Node) -> None:
    """Let ``x[i]``, a position of all samples, read that position of the tensor with the batch in dimension 0."""
    index = node.args[1]
    if isinstance(index, int):
        with model.graph.inserting_before(node):
            new = model.graph.call_function(operator.getitem, (source, (slice(None), index)))
        carry(node, new, batch=info(source).batch)
        node.replace_all_uses_with(new)


def _positionwise(model: GraphModule, node: Node, first: dict[Node, Node]) -> bool:
    """Return whether ``node`` works on each position alone, and all its operands have the batch in dimension 1."""
    others = [n for n in node.all_input_nodes if n not in first]
    if layer_of(model, node, *_LAST, *_POINTWISE) is not None:
        norm = layer_of(model, node, nn.LayerNorm, nn.RMSNorm)
        return norm is None or len(norm.normalized_shape) <= len(info(node).shape) - 2
    if node.target in _FUNCTIONS:
        return not others
    return node.target in _SUMS and all(n.op == "get_attr" and _is_vector(model, n) for n in others)


def _is_vector(model: GraphModule, node: Node) -> bool:
    """Return whether a parameter has no dimension for positions, so that their order does not matter."""
    value: Any = model
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value.dim() <= 1


def _exchanged(shape: Any) -> Any:
    """Return a shape with its first two sizes exchanged, where it is one."""
    return torch.Size([shape[1], shape[0], *shape[2:]]) if isinstance(shape, torch.Size) else shape
