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
from conversion_ext.errors import Problem
from conversion_ext.operators.base import (
    Activation,
    NodeContext,
    Operator,
    Units,
    compress,
    numbers_alone,
    ones,
    register_operator,
)
from conversion_ext.operators.bounds import Interval
from conversion_ext.operators.sites import SiteKind

__all__ = ["SUMS_WITH_CONSTANTS", "Multiple", "Offset", "Sum", "product"]


@dataclass(frozen=True)
class Sum(Operator):
    """A sum or difference of tensors: all operands take the output's unit, also those that are broadcast to it."""

    subtracts: bool = False

    def never_negative(self, inputs: Sequence[bool]) -> bool:
        return not self.subtracts and all(inputs)

    def bounds(self, context: NodeContext, inputs: Sequence[Interval]) -> Interval | None:
        if context.node.kwargs or self.subtracts:
            return None
        a, b = inputs[0], inputs[-1]  # the same where a tensor is added to itself
        return Interval(a.low + b.low, a.high + b.high)

    def free_unit(self, context: NodeContext, units: Sequence[Units]) -> Units:
        # An operand that can take any unit will follow one that cannot, so that one scale fewer remains.
        pairs = zip(units, context.shapes, strict=True)
        return next((unit for unit, shape in pairs if unit is not None and shape == context.out_shape), None)

    def output_unit(self, context: NodeContext, units: Sequence[Units], requested: Units) -> Tensor:
        return ones(context.out_shape) if requested is None else compress(torch.nan_to_num(requested, nan=1.0))

    def input_units(self, context: NodeContext, units: Sequence[Units], output: Any) -> list[Units]:
        return [_aligned(output, shape) for shape in context.shapes]

    def requested_units(self, context: NodeContext, requested: Any) -> list[Units]:
        return [None if requested is None else _narrow(requested, shape) for shape in context.shapes]


@dataclass(frozen=True)
class Multiple(Operator):
    """A product with a constant: linear, element by element. ``positive``: the constant is known not to be negative."""

    positive: bool = False

    def never_negative(self, inputs: Sequence[bool]) -> bool:
        return self.positive and all(inputs)

    def output_unit(self, context: NodeContext, units: Sequence[Units], requested: Units) -> Units:
        unit = units[0]
        return unit if unit is None or unit.dim() == len(context.out_shape) else ones(context.out_shape)

    def input_units(self, context: NodeContext, units: Sequence[Units], output: Any) -> list[Units]:
        unit = units[0]
        return [unit if unit is None or unit.dim() == len(context.out_shape) else ones(context.shapes[0])]

    def requested_units(self, context: NodeContext, requested: Any) -> list[Units]:
        if requested is None or requested.dim() != len(context.shapes[0]):
            return [None]
        return [_narrow(requested, context.shapes[0])]


@dataclass(frozen=True)
class Offset(Operator):
    """A sum with a constant, or another affine map: the mean over time is right, and the unit is 1.

    ``positive``: constants are known not to be negative, and nothing is subtracted.
    """

    positive: bool = False

    def never_negative(self, inputs: Sequence[bool]) -> bool:
        return self.positive and all(inputs)

    def output_unit(self, context: NodeContext, units: Sequence[Units], requested: Units) -> Tensor:
        return ones(context.out_shape)

    def input_units(self, context: NodeContext, units: Sequence[Units], output: Any) -> list[Units]:
        return [ones(shape) for shape in context.shapes]


def _aligned(unit: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the unit that an operand of this shape must have: one that is broadcast gets all of the output's."""
    while unit.dim() > len(shape):
        unit = unit[0]
    return unit


def _narrow(unit: Tensor, shape: Sequence[int]) -> Tensor:
    """Return what to request of an operand of this shape: one number for all to which it is broadcast."""
    unit = _aligned(unit, shape)
    for dim, size in enumerate(shape):
        if size == 1:
            unit = unit.narrow(dim, 0, 1)
    return unit


def _operands(node: Node) -> tuple[list[Any], list[Any]]:
    """Split the operands into those that come from data and the constants (numbers, parameters)."""
    operands = list(node.args[:2]) + [v for k, v in node.kwargs.items() if k in ("input", "other")]
    data = [o for o in operands if isinstance(o, Node) and graph.may_hold_data(o)]
    return data, [o for o in operands if not any(o is d for d in data)]


def _not_negative(constants: Sequence[Any]) -> bool:
    """Return whether no number among constants is negative; the values of tensors are looked at elsewhere."""
    return all(isinstance(each, Node) or each >= 0 for each in constants)


SUBTRACTIONS = (torch.sub, torch.subtract, operator.sub, operator.isub, "sub", "sub_", "subtract")


SUMS_WITH_CONSTANTS = (torch.add, operator.add, operator.iadd, "add", "add_", *SUBTRACTIONS)


@register_operator(*SUMS_WITH_CONSTANTS)
def add(node: Node, module: nn.Module | None) -> Operator:
    """Sum or difference of tensors, or of a tensor and a constant."""
    data, constants = _operands(node)
    if not data:
        return Operator()
    alpha = node.kwargs.get("alpha", 1)
    subtracts = node.target in SUBTRACTIONS or not (isinstance(alpha, (int, float)) and alpha >= 0)
    return Offset(not subtracts and _not_negative(constants)) if constants else Sum(subtracts)


DIVISIONS = (torch.div, torch.divide, torch.true_divide, operator.truediv, operator.itruediv, "div", "div_", "divide",
             "true_divide")  # fmt: skip


@register_operator(torch.mul, torch.multiply, operator.mul, operator.imul, "mul", "mul_", "multiply", *DIVISIONS)
def multiply(node: Node, module: nn.Module | None) -> Operator | Problem:
    """Product or quotient: a multiple where one factor is constant, otherwise a differential operator."""
    data, constants = _operands(node)
    if not data:
        return Operator()
    if node.kwargs.get("rounding_mode") is not None:
        return rounding(node, module)
    divides = node.target in DIVISIONS
    if constants and not (divides and node.args[0] is not data[0]):
        return Multiple(_not_negative(constants))
    return Activation(SiteKind.GRADED, keeps_sign=_not_negative(constants))


@register_operator(torch.neg, torch.negative, operator.neg, "neg")
def negate(node: Node, module: nn.Module | None) -> Operator:
    """Negation."""
    return Multiple() if any(graph.may_hold_data(source) for source in node.all_input_nodes) else Operator()


@register_operator(
    operator.floordiv, operator.ifloordiv, operator.mod, torch.floor_divide, "floor_divide", torch.remainder,
    "remainder", torch.fmod, "fmod", torch.floor, "floor", torch.ceil, "ceil", torch.round, "round", torch.trunc,
    "trunc", torch.frac, "frac",
)  # fmt: skip
def rounding(node: Node, module: nn.Module | None) -> Operator | Problem:
    """Rounding and integer division: of sizes they are numbers, of data no function that a rate comes close to."""
    return numbers_alone(
        node,
        "it rounds values, and beside a step no number of time steps is enough for a rate to be on the right side.",
        "For a quantized ReLU put conversion_ext.nn.QCFS in its place, or keep the module around it whole with skip=.",
    )


@register_operator(
    torch.pow, operator.pow, "pow", torch.sqrt, torch.exp, torch.log, "sqrt", "exp", "log", "square",
    torch.square, torch.maximum, torch.minimum, torch.sign, "sign",
)  # fmt: skip
def nonlinear(node: Node, module: nn.Module | None) -> Operator:
    """Functions that are not homogeneous, or not of one tensor; of sizes alone they are numbers."""
    return Operator() if graph.info(node).is_constant else Activation(SiteKind.GRADED)


@register_operator(
    torch.matmul, operator.matmul, "matmul", torch.mm, "mm", torch.bmm, "bmm", torch.einsum, torch.tensordot,
    torch.cumsum, "cumsum",
)  # fmt: skip
def product(node: Node, module: nn.Module | None) -> Operator:
    """Products of matrices and running sums: linear with constants, of several tensors a differential operator."""
    if graph.info(node).is_constant:
        return Operator()
    operands = [part for arg in node.args for part in (arg if isinstance(arg, (list, tuple)) else (arg,))]
    data = [part for part in operands if isinstance(part, Node) and graph.may_hold_data(part)]
    if len(data) == 1:
        return Offset()
    two = len(data) == len(set(data)) == 2  # noqa: PLR2004 (x @ x is a square, not linear in x)
    return Activation(SiteKind.GRADED, bilinear=two)
