"""Data movement: what it does to the values it does to their units, element by element."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from conversion_ext import graph
from conversion_ext.operators.base import Call, Operator, Units, compress, ones, register_operator
from conversion_ext.types import Family

__all__ = ["Movement", "mixed"]


@dataclass(frozen=True)
class Movement(Operator):
    """Every output element is a copy of one input element; which one is found by moving indices."""

    def unit_out(self, call: Call, units: Sequence[Units], demanded: Units) -> Any:
        table = torch.cat([_spread(u, s) for u, s in zip(units, call.shapes, strict=True)])
        return _map(lambda index: compress(table[index]), _indices(call))

    def required(self, call: Call, units: Sequence[Units], out: Any) -> list[Units]:
        return list(units)

    def demand(self, call: Call, demanded: Any) -> list[Units]:
        if demanded is None:
            return [None] * len(call.inputs)
        sizes = [shape.numel() for shape in call.shapes]
        table = torch.full((sum(sizes),), torch.nan, dtype=torch.float64)
        indices = _indices(call)
        pairs = zip(indices, demanded, strict=True) if isinstance(indices, tuple) else [(indices, demanded)]
        for index, wish in pairs:
            if wish is not None:
                table[index.reshape(-1)] = wish.expand(index.shape).reshape(-1)
        parts = table.split(sizes)
        return [compress(part.reshape(shape)) for part, shape in zip(parts, call.shapes, strict=True)]

    def keeps_sign(self, node: Node) -> bool:
        return True

    def family_out(self, call: Call, families: Sequence[Family]) -> Family:
        return mixed(families)


def mixed(families: Sequence[Family]) -> Family:
    """Return the family of a tensor whose parts have these families."""
    order = (Family.BINARY, Family.SIGNED, Family.MULTI_LEVEL, Family.GRADED, Family.ANALOG)
    return max(families, key=order.index)


def _indices(call: Call) -> Any:
    """Return, shaped as the output, the position of each output element among all input elements."""
    start, indices = 0, []
    for shape in call.shapes:
        indices.append(torch.arange(start, start + shape.numel()).reshape(shape))
        start += shape.numel()
    return call.replay(indices)


def _spread(unit: Tensor | None, shape: torch.Size) -> Tensor:
    return (ones(shape) if unit is None else unit).expand(shape).reshape(-1)


def _map(function: Any, value: Any) -> Any:
    return tuple(function(v) for v in value) if isinstance(value, (tuple, list)) else function(value)


@register_operator(
    nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle, torch.flatten, torch.reshape,
    torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze, torch.cat, torch.concat, torch.concatenate,
    torch.stack, torch.chunk, torch.split, torch.unbind, torch.movedim, torch.swapaxes, torch.narrow, torch.roll,
    torch.flip, "view", "reshape", "flatten", "transpose", "permute", "squeeze", "unsqueeze", "chunk", "split",
    "unbind", "movedim", "swapaxes", "narrow", "expand", "repeat", "roll", "flip", "contiguous", "unflatten", "t",
)  # fmt: skip
def movement(node: Node, module: nn.Module | None) -> Operator:
    """Views, transpositions, splits, concatenations and copies."""
    return Movement()


@dataclass(frozen=True)
class Element(Operator):
    """Choose one of several outputs; the unit is that output's."""

    index: int = 0

    def unit_out(self, call: Call, units: Sequence[Units], demanded: Units) -> Any:
        unit: Any = units[0]
        return unit[self.index] if isinstance(unit, tuple) else unit

    def required(self, call: Call, units: Sequence[Units], out: Any) -> list[Units]:
        return list(units)

    def demand(self, call: Call, demanded: Any) -> list[Any]:
        return [tuple(demanded if i == self.index else None for i in range(len(call.shapes[0])))]

    def keeps_sign(self, node: Node) -> bool:
        return True

    def family_out(self, call: Call, families: Sequence[Family]) -> Family:
        return families[0]


@register_operator(operator.getitem)
def getitem(node: Node, module: nn.Module | None) -> Operator:
    """Slicing of a tensor, or one output of a split, or one entry of a shape."""
    source = node.args[0]
    shape = graph.info(source).shape if isinstance(source, Node) else None
    if isinstance(shape, torch.Size):
        return Movement()
    index = node.args[1]
    return Element(index) if isinstance(shape, tuple) and isinstance(index, int) else Operator()
