"""Assignment to a part of a tensor, as a function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from conversion_ext.graph import info
from conversion_ext.operators.arithmetic import Offset
from conversion_ext.operators.base import Operator, register_operator
from conversion_ext.operators.movement import Movement

__all__ = ["with_item"]


def with_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """Return a copy of ``x`` in which ``x[index] = value`` was done."""
    x = x.clone(memory_format=torch.contiguous_format)
    x[index] = value
    return x


@register_operator(with_item)
def assignment(node: Node, module: nn.Module | None) -> Operator:
    """Values of one tensor take the place of those of another; a constant in their place is an offset."""
    value: Any = node.args[2]
    data = isinstance(value, Node) and info(value).is_data
    return Movement() if data else Offset()
