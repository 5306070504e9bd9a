"""Inputs read as integers."""

from __future__ import annotations

from torch import nn
from torch.fx import Node

from conversion_ext.nn.integer import IntegerInput
from conversion_ext.operators.base import Elementwise, Operator, register_operator

__all__ = ["integer_input"]


@register_operator(IntegerInput)
def integer_input(node: Node, module: nn.Module | None) -> Operator:
    """An input read as integers."""
    return Elementwise()
