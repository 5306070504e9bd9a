"""Shapes and numbers computed from them: no scale, no time."""

from __future__ import annotations

from torch import nn
from torch.fx import Node

from conversion_ext import graph
from conversion_ext.operators.base import Operator, register_operator
from conversion_ext.operators.movement import Movement

__all__ = ["attribute", "size"]


@register_operator("size", "dim", "ndimension", "numel", int, len)
def size(node: Node, module: nn.Module | None) -> Operator:
    """Shape queries, and numbers computed from them."""
    return Operator()


@register_operator(getattr)
def attribute(node: Node, module: nn.Module | None) -> Operator:
    """Attributes of a tensor: shapes and the like are numbers, ``x.mT`` and ``x.real`` move data."""
    return Movement() if graph.info(node).is_data else Operator()
