"""The batch: read its size where it is used, and find what mixes its samples."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node, map_arg

from conversion_ext.graph import describe, info, key_of, note, refresh

__all__ = ["BatchSize", "is_batch_size"]
_ARITHMETIC = {operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg}
_ELEMENTWISE = {operator.add, operator.sub, operator.mul, torch.add, torch.mul, torch.cat, F.pad, F.interpolate}


class BatchSize:
    """``y.view(x.size(0), ...)`` reads its batch size from y itself, and ``y.view(4 * x.size(0), ...)`` 4 times that.

    In a converted network time is folded into the batch of y but perhaps not of x. Needs to know that both
    batches are one, or multiples of one: from ``mark_batch_sizes``, else only where layers lead from x to y.
    """

    def run(self, model: GraphModule) -> None:
        """Rewrite the arguments of every call that works on a tensor with the batch in dimension 0."""
        for node, tensor, size in self._foreign(model):
            own = _own_size(model, node, tensor, info(size).batch or 1)
            node.args = (node.args[0], *_swap(node.args[1:], size, own))
            node.kwargs = _swap(node.kwargs, size, own)
        refresh(model)

    def ensures(self, model: GraphModule) -> list[str]:
        """No call that views a batch takes its size from another tensor."""
        return [f"{n.name} takes its batch size from {size.name}." for n, _, size in self._foreign(model)]

    def _foreign(self, model: GraphModule) -> list[tuple[Node, Node, Node]]:
        """Return (call, tensor it works on, batch size that it takes from elsewhere)."""
        foreign = []
        for node in model.graph.nodes:
            tensor = node.args[0] if node.args else None
            if node.op not in ("call_function", "call_method") or not isinstance(tensor, Node):
                continue
            if _is_size(tensor) or _origins(tensor):  # a number
                continue
            for size in node.all_input_nodes:
                if info(size).batch and info(tensor).batch:
                    elsewhere = bool(_origins(size) - {tensor})
                else:
                    source = _source(size)
                    known = info(tensor).batch is not None or source in (None, tensor)
                    elsewhere = not known and _follows(tensor, source)
                if elsewhere:
                    foreign.append((node, tensor, size))
        return foreign


def _own_size(model: GraphModule, node: Node, tensor: Node, times: int) -> Node:
    """Return a number for ``node``: the batch size, ``times`` over, as dimension 0 of ``tensor`` has it."""
    rows = info(tensor).batch or 1
    factor, divisor = times // math.gcd(times, rows), rows // math.gcd(times, rows)
    with model.graph.inserting_before(node):
        own = model.graph.call_method("size", (tensor, 0))
        note(own, key=f"{key_of(node)}.size", line=describe(node), batch=rows)
        for function, number in ((operator.mul, factor), (operator.floordiv, divisor)):
            if number > 1:
                own = model.graph.call_function(function, (own, number))
                note(own, key=f"{key_of(node)}.size", line=describe(node), batch=times)
    return own


def _origins(number: Node) -> set[Node]:
    """Return the tensors from whose sizes a number is computed; none if it is not a number."""
    source = _source(number)
    if source is not None:
        return {source}
    if number.target not in _ARITHMETIC or info(number).is_data:
        return set()
    return set().union(*map(_origins, number.all_input_nodes))


def is_batch_size(value: object, tensor: Node) -> bool:
    """Return whether an argument of a call is the batch size of ``tensor``."""
    return isinstance(value, Node) and _source(value) is tensor


def _swap(args: Any, old: Node, new: Node) -> Any:
    """Return ``args`` with one node replaced by another."""
    return map_arg(args, lambda node: new if node is old else node)


def _source(node: Node) -> Node | None:
    """Return the tensor whose dimension 0 a size node reads: ``x.size(0)``, ``x.size()[0]`` or ``x.shape[0]``."""
    if node.op == "call_method" and node.target == "size":
        tensor, dim, *_ = (*node.args, node.kwargs.get("dim"))
        return tensor if dim == 0 and isinstance(tensor, Node) else None
    sizes: Any = node.args[0] if node.target is operator.getitem and node.args[1] == 0 else None
    return sizes.args[0] if _is_shape(sizes) else None


def _is_size(node: Node) -> bool:
    """Return whether the value of ``node`` is a shape or one of its sizes."""
    return _is_shape(node) or (node.op == "call_method" and node.target == "size") or _source(node) is not None


def _is_shape(node: Any) -> bool:
    """Return whether ``node`` is ``x.shape`` or ``x.size()``."""
    if not isinstance(node, Node):
        return False
    attribute = node.target is getattr and node.args[1:2] == ("shape",)
    return attribute or (node.op == "call_method" and node.target == "size" and len(node.args) == 1 and not node.kwargs)


def _follows(tensor: Node, source: Node | None) -> bool:
    """Return whether layers and elementwise operations, which keep dimension 0, lead from ``source`` to ``tensor``."""
    node: Node | None = tensor
    while node is not None and node is not source:
        if node.op != "call_module" and node.target not in _ELEMENTWISE:
            return False
        node = next((i for i in node.all_input_nodes if i.op != "get_attr"), None)
    return node is source
