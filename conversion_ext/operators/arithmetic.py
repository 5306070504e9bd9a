"""Sums, which join branches in one unit; multiples, which pass it on; products, which are not homogeneous."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from conversion_ext import graph
from conversion_ext.operators.base import Activation, Call, Operator, Units, compress, ones, register_operator
from conversion_ext.operators.sites import SiteKind
from conversion_ext.types import Family

__all__ = ["Multiple", "Offset", "Sum"]


@dataclass(frozen=True)
class Sum(Operator):
    """A sum or difference of tensors: all operands take the output's unit."""

    subtracts: bool = False

    def keeps_sign(self, node: Node) -> bool:
        return not self.subtracts

    def natural(self, call: Call, units: Sequence[Units]) -> Units:
        # An operand that can take any unit will follow one that cannot, so that one scale fewer remains.
        return next((u for u, s in zip(units, call.shapes, strict=True) if u is not None and s == call.out_shape), None)

    def unit_out(self, call: Call, units: Sequence[Units], demanded: Units) -> Tensor:
        return ones(call.out_shape) if demanded is None else compress(torch.nan_to_num(demanded, nan=1.0))

    def required(self, call: Call, units: Sequence[Units], out: Any) -> list[Units]:
        return [_narrow(out, shape) for shape in call.shapes]

    def demand(self, call: Call, demanded: Any) -> list[Units]:
        return [None if demanded is None else _narrow(demanded, shape) for shape in call.shapes]


@dataclass(frozen=True)
class Multiple(Operator):
    """A product with a constant: linear, element by element."""

    def unit_out(self, call: Call, units: Sequence[Units], demanded: Units) -> Units:
        unit = units[0]
        return unit if unit is None or unit.dim() == len(call.out_shape) else ones(call.out_shape)

    def required(self, call: Call, units: Sequence[Units], out: Any) -> list[Units]:
        unit = units[0]
        return [unit if unit is None or unit.dim() == len(call.out_shape) else ones(call.shapes[0])] + [None] * (
            len(units) - 1
        )

    def demand(self, call: Call, demanded: Any) -> list[Units]:
        first = None if demanded is None or demanded.dim() != len(call.shapes[0]) else _narrow(demanded, call.shapes[0])
        return [first] + [None] * (len(call.inputs) - 1)


@dataclass(frozen=True)
class Offset(Operator):
    """A sum with a constant: affine, so the mean over time is right, and the unit is 1."""

    def unit_out(self, call: Call, units: Sequence[Units], demanded: Units) -> Tensor:
        return ones(call.out_shape)

    def required(self, call: Call, units: Sequence[Units], out: Any) -> list[Units]:
        return [ones(shape) for shape in call.shapes]

    def family_out(self, call: Call, families: Sequence[Family]) -> Family:
        return Family.ANALOG


def _narrow(unit: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the unit of an operand that is broadcast to the output of a sum."""
    while unit.dim() > len(shape):
        unit = unit[0]
    for dim, size in enumerate(shape):
        if size == 1:
            unit = unit.narrow(dim, 0, 1)
    return unit


def _operands(node: Node) -> tuple[list[Any], list[Any]]:
    """Split the operands into those that come from data and the constants (numbers, parameters)."""
    operands = list(node.args[:2]) + [v for k, v in node.kwargs.items() if k in ("input", "other")]
    data = [o for o in operands if isinstance(o, Node) and graph.info(o).is_data]
    return data, [o for o in operands if not any(o is d for d in data)]


SUBTRACTIONS = (torch.sub, operator.sub, operator.isub, "sub", "sub_")


@register_operator(torch.add, operator.add, operator.iadd, "add", "add_", *SUBTRACTIONS)
def add(node: Node, module: nn.Module | None) -> Operator:
    """Sum or difference of tensors, or of a tensor and a constant."""
    data, constants = _operands(node)
    if not data:
        return Operator()
    alpha = node.kwargs.get("alpha", 1)
    negative = node.target in SUBTRACTIONS or not (isinstance(alpha, (int, float)) and alpha >= 0)
    return Offset() if constants else Sum(subtracts=negative)


@register_operator(torch.mul, torch.multiply, operator.mul, operator.imul, "mul", "mul_", torch.div, operator.truediv,
                   operator.itruediv, "div", "div_")  # fmt: skip
def multiply(node: Node, module: nn.Module | None) -> Operator:
    """Product or quotient: a multiple where one factor is constant, otherwise a differential operator."""
    data, constants = _operands(node)
    if not data:
        return Operator()
    divides = node.target in (torch.div, operator.truediv, operator.itruediv, "div", "div_")
    if constants and not (divides and node.args[0] is not data[0]):
        return Multiple()
    return Activation(SiteKind.GRADED)


@register_operator(torch.neg, operator.neg, "neg")
def negate(node: Node, module: nn.Module | None) -> Operator:
    """Negation."""
    return Multiple() if any(graph.info(source).is_data for source in node.all_input_nodes) else Operator()


@register_operator(
    torch.matmul, operator.matmul, "matmul", torch.bmm, torch.einsum, torch.pow, operator.pow, "pow", torch.sqrt,
    torch.exp, torch.log, "sqrt", "exp", "log", "square", torch.square, torch.maximum, torch.minimum,
    torch.sign, "sign",
)  # fmt: skip
def nonlinear(node: Node, module: nn.Module | None) -> Operator:
    """Functions that are not homogeneous, or not of one tensor; of sizes alone they are numbers."""
    return Operator() if graph.info(node).is_constant else Activation(SiteKind.GRADED)
