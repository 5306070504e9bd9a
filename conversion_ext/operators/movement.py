"""Data movement: what it does to the values it does to their units, element by element."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from conversion_ext import graph
from conversion_ext.graph.values import tensors_in
from conversion_ext.operators.base import NodeContext, Operator, Units, compress, first, ones, register_operator
from conversion_ext.operators.bounds import Interval
from conversion_ext.types import Family

__all__ = ["Movement", "mixed"]


@dataclass(frozen=True)
class Movement(Operator):
    """Every output element is a copy of one input element, or zero; which one is found by moving indices."""

    def output_unit(self, context: NodeContext, units: Sequence[Units], requested: Units) -> Any:
        moved = self._moved_units(context, units)
        return graph.map_sizes(context.out_shape, ones) if moved is None else moved

    def input_units(self, context: NodeContext, units: Sequence[Units], output: Any) -> list[Units]:
        return [ones(s) for s in context.shapes] if self._moved_units(context, units) is None else list(units)

    def _moved_units(self, context: NodeContext, units: Sequence[Units]) -> Any:
        """Return what becomes of units; None where rows that are folded into the batch would have different ones."""
        known = [ones(s) if u is None else u for u, s in zip(units, context.shapes, strict=True)]
        moved = self.moved(context, known)
        return None if any(map(_differs_by_row, tensors_in(moved))) else moved

    def requested_units(self, context: NodeContext, requested: Any) -> list[Units]:
        if requested is None:
            return [None] * len(context.inputs)
        sizes = [shape.numel() for shape in context.shapes]
        table = torch.full((1 + sum(sizes),), torch.nan, dtype=torch.float64)
        indices = _indices(context)
        pairs = zip(indices, requested, strict=True) if isinstance(indices, tuple) else [(indices, requested)]
        for index, wish in pairs:
            if wish is not None:
                table[index.reshape(-1)] = wish.expand(index.shape).reshape(-1)
        parts = table[1:].split(sizes)
        wishes = [compress(part.reshape(shape)) for part, shape in zip(parts, context.shapes, strict=True)]
        return [first(wish, [0]) if _differs_by_row(wish) else wish for wish in wishes]

    def never_negative(self, inputs: Sequence[bool]) -> bool:
        return all(inputs)

    def bounds(self, context: NodeContext, inputs: Sequence[Interval]) -> Any:
        low, high = (self.moved(context, [getattr(x, end) for x in inputs], 0.0) for end in ("low", "high"))
        low, high = _map(lambda x: x.amin(0, keepdim=True), low), _map(lambda x: x.amax(0, keepdim=True), high)
        return tuple(map(Interval, low, high)) if isinstance(low, tuple) else Interval(low, high)

    def family_out(self, context: NodeContext, families: Sequence[Family]) -> Family:
        return mixed(families)

    def moved(self, context: NodeContext, values: Sequence[Tensor], zero: float = torch.nan, fill: float = 1.0) -> Any:
        """Return what ``values`` of the inputs become, in as few dimensions as they need.

        ``zero`` is the value of zeros, nan for any; what holds nothing but zeros of any value gets ``fill``.
        """
        flat = [value.expand(shape).reshape(-1) for value, shape in zip(values, context.shapes, strict=True)]
        table = torch.cat([flat[0].new_full((1,), zero), *flat])
        return _map(lambda index: _settle(table[index], fill), _indices(context))


def mixed(families: Sequence[Family]) -> Family:
    """Return the family of a tensor whose parts have these families."""
    order = (Family.BINARY, Family.WEIGHTED, Family.SIGNED, Family.MULTI_LEVEL, Family.GRADED, Family.ANALOG)
    return max(families, key=order.index)


def _indices(context: NodeContext) -> Any:
    """Return, shaped as the output, the position from 1 of each output element among all input elements; 0 for zero."""
    start, indices = 1, []
    for shape in context.shapes:
        # In float64, since torch moves integers in fewer ways.
        indices.append(torch.arange(start, start + shape.numel(), dtype=torch.float64).reshape(shape))
        start += shape.numel()
    return _map(lambda index: index.long(), context.rerun(indices))


def _settle(unit: Tensor, fill: float) -> Tensor:
    """Return a unit in as few dimensions as it needs; nan stands for zeros, which fit any unit."""
    if not unit.numel():  # an empty part of a split
        return unit.new_ones([1] * unit.dim())
    for dim in range(unit.dim()):
        low, high = (
            extreme(unit.nan_to_num(end), dim) for extreme, end in ((torch.amin, torch.inf), (torch.amax, 0.0))
        )
        if bool((low >= high).all()):
            unit = torch.where(low == torch.inf, torch.nan, low).unsqueeze(dim)
    return torch.nan_to_num(unit, nan=fill)


def _differs_by_row(unit: Tensor) -> bool:
    """Return whether a unit is another one for each row of a sample, which time and batch are folded into."""
    return unit.dim() > 0 and unit.shape[0] > 1


def _map(function: Any, value: Any) -> Any:
    return tuple(function(v) for v in value) if isinstance(value, (tuple, list)) else function(value)


@register_operator(
    nn.Flatten, nn.Unflatten, nn.Unfold, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle, torch.flatten,
    torch.reshape,
    torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze, torch.cat, torch.concat, torch.concatenate,
    torch.stack, torch.chunk, torch.split, torch.unbind, torch.movedim, torch.swapaxes, torch.narrow, torch.roll,
    torch.flip, "view", "reshape", "flatten", "transpose", "permute", "squeeze", "unsqueeze", "chunk", "split",
    "unbind", "movedim", "swapaxes", "narrow", "expand", "repeat", "roll", "flip", "contiguous", "unflatten", "t",
    torch.swapdims, "swapdims", torch.moveaxis, "moveaxis", "ravel", torch.ravel, torch.tril, torch.triu, "tril",
    "triu", torch.rot90, "rot90", "broadcast_to", torch.broadcast_to, "unfold", F.unfold,
    torch.unflatten, torch.pixel_shuffle, torch.pixel_unshuffle, torch.channel_shuffle,
    torch.diagonal, "diagonal",
)  # fmt: skip
def movement(node: Node, module: nn.Module | None) -> Operator:
    """Views, transpositions, splits, concatenations and copies."""
    return Operator() if graph.info(node).is_constant else Movement()


@dataclass(frozen=True)
class Element(Operator):
    """Choose one of several outputs; the unit is that output's."""

    index: int = 0

    def output_unit(self, context: NodeContext, units: Sequence[Units], requested: Units) -> Any:
        unit: Any = units[0]
        return unit[self.index] if isinstance(unit, tuple) else unit

    def input_units(self, context: NodeContext, units: Sequence[Units], output: Any) -> list[Units]:
        return list(units)

    def requested_units(self, context: NodeContext, requested: Any) -> list[Any]:
        index = self.index % len(context.shapes[0])
        return [tuple(requested if i == index else None for i in range(len(context.shapes[0])))]

    def never_negative(self, inputs: Sequence[bool]) -> bool:
        return all(inputs)

    def bounds(self, context: NodeContext, inputs: Sequence[Any]) -> Any:
        return inputs[0][self.index] if isinstance(inputs[0], tuple) else inputs[0]

    def family_out(self, context: NodeContext, families: Sequence[Family]) -> Family:
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
