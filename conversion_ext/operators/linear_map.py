"""Linear maps without weights, along some dimensions: pools, means, upsampling, padding. They pass units on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from conversion_ext import graph
from conversion_ext.errors import Problem
from conversion_ext.graph.layers import ADAPTIVE_AVERAGE_POOLS, AVERAGE_POOLS, spatial_dims
from conversion_ext.operators.arithmetic import Offset
from conversion_ext.operators.base import Activation, NodeContext, Operator, Units, argument, first, register_operator
from conversion_ext.operators.bounds import Interval, hull
from conversion_ext.operators.movement import Movement
from conversion_ext.operators.sites import SiteKind
from conversion_ext.types import Family

__all__ = ["LinearMap"]

COUNTS = (Family.BINARY, Family.MULTI_LEVEL)  # sums of these are spikes of several


@dataclass(frozen=True)
class LinearMap(Operator):
    """A linear map that mixes entries along the dimensions ``mixed`` and does the same at all others.

    Along ``mixed`` a unit must not change; along the others it is passed on. ``removed``: the output lacks the mixed
    dimensions. ``keeps_values``: outputs are inputs or zero, so spikes stay spikes; ``keeps_sign``: no weight of the
    map is negative; ``convex``: outputs are weighted means of inputs and zero.
    """

    mixed: tuple[int, ...]
    removed: bool = False
    keeps_values: bool = False
    keeps_sign: bool = True
    convex: bool = True

    def output_unit(self, context: NodeContext, units: Sequence[Units], requested: Units) -> Tensor | None:
        unit = units[0]
        if unit is None:
            return None
        unit = first(unit, self.mixed)
        return unit.squeeze(self.mixed) if self.removed else unit

    def input_units(self, context: NodeContext, units: Sequence[Units], output: Any) -> list[Units]:
        return [None if unit is None else first(unit, self.mixed) for unit in units]

    def requested_units(self, context: NodeContext, requested: Any) -> list[Units]:
        if requested is None:
            return [None]
        for dim in sorted(self.mixed) if self.removed else ():
            requested = requested.unsqueeze(dim)
        return [first(requested, self.mixed)]

    def never_negative(self, inputs: Sequence[bool]) -> bool:
        return self.keeps_sign and all(inputs)

    def bounds(self, context: NodeContext, inputs: Sequence[Interval]) -> Interval | None:
        if not self.convex:
            return None
        x = hull(inputs[0], self.mixed)
        x = x if isinstance(context.module, ADAPTIVE_AVERAGE_POOLS) else x.with_zero()  # padding is among the values
        return Interval(x.low.squeeze(self.mixed), x.high.squeeze(self.mixed)) if self.removed else x

    def family_out(self, context: NodeContext, families: Sequence[Family]) -> Family:
        if self.keeps_values:
            return families[0]
        adds = getattr(context.module, "divisor_override", None) == 1  # every spike is passed on
        return Family.MULTI_LEVEL if adds and families[0] in COUNTS else Family.ANALOG


def last_dims(node: Node, count: int) -> tuple[int, ...]:
    """Return the last ``count`` dimensions of the input of a call; [N, C, ...] is assumed where it is not known."""
    rank = len(input_shape(node)) or count + 2
    return tuple(range(rank - count, rank))


def input_shape(node: Node) -> Sequence[int]:
    """Return the shape of the input of a call, () where it is not known."""
    source = node.args[0] if node.args else node.kwargs.get("input")
    return (graph.info(source).shape or ()) if isinstance(source, Node) else ()


@register_operator(
    *AVERAGE_POOLS, *ADAPTIVE_AVERAGE_POOLS, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
)  # fmt: skip
def average_pool(node: Node, module: nn.Module | None) -> Operator:
    """Average and adaptive average pooling."""
    divided = getattr(module, "divisor_override", None) or node.kwargs.get("divisor_override")
    dims = last_dims(node, spatial_dims(module if module is not None else node.target))
    return LinearMap(dims, convex=divided is None)


@register_operator(nn.LPPool1d, nn.LPPool2d, nn.LPPool3d)
def power_average_pool(node: Node, module: Any) -> Operator:
    """Pooling by the p-norm: for p = 1 torch adds up the window, which is linear; otherwise a graded function."""
    if module.norm_type != 1:
        return Activation(SiteKind.GRADED)
    return LinearMap(last_dims(node, spatial_dims(module)), convex=False)


@register_operator(torch.mean, "mean", torch.sum, "sum")
def mean(node: Node, module: nn.Module | None) -> Operator | Problem:
    """Mean or sum over dimensions other than the batch."""
    if graph.info(node).is_constant:
        return Operator()
    dims = argument(node, 1, ("dim", "axis"), None)
    dims = dims if isinstance(dims, (tuple, list)) else (dims,)
    rank = len(input_shape(node))
    named = all(isinstance(d, int) for d in dims) and bool(dims)
    if not named or any((d % rank if rank else d) == 0 for d in dims):
        return mixes_samples(node, module)
    mixed = tuple(sorted(d % rank if rank else d for d in dims))
    keeps = argument(node, 2, ("keepdim",), False)
    return LinearMap(mixed, removed=not keeps, convex=node.target in (torch.mean, "mean"))


@register_operator(torch.max, torch.min, "max", "min", torch.amax, torch.amin)
def mixes_samples(node: Node, module: nn.Module | None) -> Problem:
    """A reduction over the batch; over other dimensions, extremes are max-pools since the graph was captured."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return Problem(
        graph.key_of(node),
        f"{name} over the batch dimension or over everything mixes samples.",
        "Name the dimensions to reduce, without 0.",
        graph.describe(node),
    )


@register_operator(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, F.interpolate, F.upsample)
def upsample(node: Node, module: Any) -> Operator:
    """Upsampling of every mode but bicubic keeps values in range; nearest keeps spikes."""
    mode = module.mode if module is not None else argument(node, 3, ("mode",), "nearest")
    convex = mode != "bicubic"
    dims = last_dims(node, max(1, len(input_shape(node)) - 2))
    return LinearMap(dims, keeps_values=mode in ("nearest", "nearest-exact"), keeps_sign=convex, convex=convex)


@register_operator(
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d,
    nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d,
    nn.CircularPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, F.pad,
)  # fmt: skip
def padding(node: Node, module: Any) -> Operator:
    """Padding with zeros or with the tensor's own values, of any dimension; with another constant an offset."""
    value = getattr(module, "value", 0) if module is not None else argument(node, 3, ("value",), 0)
    pad = module.padding if module is not None else argument(node, 1, ("pad",), ())
    if value:
        return Offset(positive=value > 0)
    rank = len(input_shape(node)) or len(pad) // 2 + 2
    padded = tuple(rank - 1 - i for i in reversed(range(len(pad) // 2)) if pad[2 * i] or pad[2 * i + 1])
    if min(padded, default=2) < 2:  # channels get zeros or each other's values: units move along
        return Movement()
    return LinearMap(padded, keeps_values=True)
