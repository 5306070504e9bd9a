"""Which values of a network are known to have no negative element."""

from __future__ import annotations

from torch import Tensor
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.operators.base import Operator, operator_of

__all__ = ["never_negative"]


def never_negative(model: GraphModule) -> set[Node]:
    """Return the nodes whose value is known to have no negative element, as their operators answer."""
    non_negative: set[Node] = set()
    for node in model.graph.nodes:
        if _is_never_negative(model, node, non_negative):
            non_negative.add(node)
    return non_negative


def _is_never_negative(model: GraphModule, node: Node, known: set[Node]) -> bool:
    if node.op == "get_attr":
        value = graph.attribute_of(model, node)
        return isinstance(value, Tensor) and not value.is_complex() and bool((value >= 0).all())
    operator = operator_of(model, node)
    if node.op not in ("call_module", "call_function", "call_method") or not isinstance(operator, Operator):
        return False
    tensors = [source for source in node.all_input_nodes if not graph.is_number(source)]
    return operator.never_negative([source in known for source in tensors])
