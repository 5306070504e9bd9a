"""Comparisons of values: what is chosen by one is a graded function, a condition alone is a step."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from conversion_ext import graph
from conversion_ext.errors import Problem
from conversion_ext.operators.arithmetic import Offset
from conversion_ext.operators.base import Activation, Operator, argument, numbers_alone, register_operator
from conversion_ext.operators.movement import Movement
from conversion_ext.operators.sites import SiteKind

__all__ = ["where_compared"]


def where_compared(comparison: str, left: Any, right: Any, x: Any, other: Any) -> Tensor:
    """Return ``torch.where(comparison(left, right), x, other)`` as one function of its tensors."""
    return torch.where(getattr(torch, comparison)(left, right), x, other)


@register_operator(where_compared)
def choice_by_comparison(node: Node, module: nn.Module | None) -> Operator:
    """A choice among values by a comparison of values: the differential operator of the mean inputs."""
    return Operator() if graph.info(node).is_constant else Activation(SiteKind.GRADED)


@register_operator(torch.where)
def choice(node: Node, module: nn.Module | None) -> Operator | Problem:
    """A choice by a constant mask: of data alone, or zero, it moves values; with another constant it is an offset."""
    condition = argument(node, 0, ("condition",), None)
    if isinstance(condition, Node) and graph.may_hold_data(condition):
        return step(condition, module)
    sides = [argument(node, place, (name,), None) for place, name in ((1, "input"), (2, "other"))]
    moved = all(side == 0 or (isinstance(side, Node) and graph.may_hold_data(side)) for side in sides)
    return Movement() if moved else Offset()


@register_operator(
    operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne, operator.and_, operator.or_,
    torch.gt, torch.ge, torch.lt, torch.le, torch.eq, torch.ne, torch.greater, torch.less, torch.greater_equal,
    torch.less_equal, torch.logical_and, torch.logical_or, torch.logical_not, torch.heaviside, torch.argmax,
    torch.argmin, torch.bitwise_not, "gt", "ge", "lt", "le", "eq", "ne",
    "greater", "less", "greater_equal", "less_equal", "logical_and", "logical_or",
    "logical_not", "argmax", "argmin", "heaviside", "__invert__", "bitwise_not", operator.invert, torch.topk, "topk",
    torch.sort, "sort", torch.argsort, "argsort",
)  # fmt: skip
def step(node: Node, module: nn.Module | None) -> Operator | Problem:
    """Conditions on data: they jump, and no rate comes close to a jump; of sizes they are numbers."""
    return numbers_alone(
        node,
        "it is a step between two values, and beside it no number of time steps is enough for a rate to be right.",
        "Use it as torch.where(x > y, a, b), give a mask as an input, or keep the module around it whole with skip=.",
    )


@register_operator(
    "to", "float", "double", "half", "bfloat16", "int", "long", "short", "bool", "type", "cfloat", "cdouble"
)
def cast(node: Node, module: nn.Module | None) -> Operator | Problem:
    """Casts that change the type of numbers; the others leave no trace."""
    return numbers_alone(
        node,
        "it changes the type of numbers on the way, and a network is converted in one type.",
        "Give the whole network and its input one dtype.",
    )
