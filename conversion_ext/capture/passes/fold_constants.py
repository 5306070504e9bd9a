"""What depends on parameters alone is computed once: standardized weights, frozen normalizations, scaled gains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from conversion_ext.graph import attribute_of, call, info, note, refresh, rename_free

__all__ = ["FoldConstants"]


class FoldConstants:
    """A function of parameters and buffers becomes one parameter (or buffer, if it is not trained)."""

    def run(self, model: GraphModule) -> None:
        """Evaluate all constant nodes and store what other nodes use."""
        values = _attributes(model)
        trained = {node for node, value in values.items() if isinstance(value, Tensor) and value.requires_grad}
        for node in list(model.graph.nodes):
            if not _is_constant(node, values):
                continue
            first, second = _evaluate(model, node, values), _evaluate(model, node, values)
            if _equal(first, second):  # a random function of a parameter is not a constant
                values[node] = first
                if trained.intersection(node.all_input_nodes):
                    trained.add(node)
        for node, value in values.items():
            if node.op != "get_attr" and any(user not in values for user in node.users):
                _store(model, node, value, node in trained)
        refresh(model)

    def ensures(self, model: GraphModule) -> list[str]:
        """No function is left whose inputs are all parameters, buffers and plain values."""
        known = _attributes(model)
        left = [node for node in model.graph.nodes if _is_constant(node, known)]
        left = [node for node in left if _equal(_evaluate(model, node, known), _evaluate(model, node, known))]
        return [f"{node.name} is a constant left in the graph." for node in left]


def _attributes(model: GraphModule) -> dict[Node, Any]:
    """Return {get_attr node: value}."""
    return {node: attribute_of(model, node) for node in model.graph.nodes if node.op == "get_attr"}


def _is_constant(node: Node, values: dict[Node, Any]) -> bool:
    """Return whether ``node`` is a function of known values only."""
    inputs = node.all_input_nodes
    return node.op in ("call_function", "call_method") and bool(inputs) and all(i in values for i in inputs)


def _evaluate(model: GraphModule, node: Node, values: dict[Node, Any]) -> Any:
    """Return the value of a call whose inputs are all known."""
    with torch.no_grad():
        return call(model, node, values.__getitem__)


def _equal(first: Any, second: Any) -> bool:
    """Return whether two evaluations gave the same."""
    if isinstance(first, Tensor):
        return torch.equal(first.nan_to_num(), second.nan_to_num())
    if isinstance(first, tuple | list):
        return all(map(_equal, first, second))
    return first == second


def _store(model: GraphModule, node: Node, value: Any, trained: bool) -> None:
    """Let the users of ``node`` read its value."""
    if not isinstance(value, Tensor):
        for user in list(node.users):
            user.args = torch.fx.map_arg(user.args, lambda n: value if n is node else n)
            user.kwargs = torch.fx.map_arg(user.kwargs, lambda n: value if n is node else n)
        return
    name = rename_free(model, node.name)
    if value.is_floating_point():
        model.register_parameter(name, nn.Parameter(value.clone(), requires_grad=trained))
    else:
        model.register_buffer(name, value.clone())
    with model.graph.inserting_before(node):
        new = model.graph.get_attr(name)
    note(new, key=info(node).key, line=info(node).line)
    node.replace_all_uses_with(new)
