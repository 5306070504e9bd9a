"""Shapes and numbers computed from them: no scale, no time."""

from __future__ import annotations

import operator

from torch import nn
from torch.fx import Node

from conversion_ext.operators.base import Operator, register_operator

__all__ = ["size"]


@register_operator("size", "dim", "numel", getattr, operator.floordiv, int, len)
def size(node: Node, module: nn.Module | None) -> Operator:
    """Shape queries and integer arithmetic on them."""
    return Operator()
