"""Operations that act on each channel alone and are linear: they pass the channel's unit on."""

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
from conversion_ext.operators.base import Activation, Call, Operator, Units, register_operator
from conversion_ext.operators.sites import SiteKind
from conversion_ext.operators.synapse import along
from conversion_ext.types import Family

__all__ = ["PerChannelMap"]


@dataclass(frozen=True)
class PerChannelMap(Operator):
    """A linear map of every channel onto itself.

    ``keeps_values``: outputs are inputs or zero, so spikes stay spikes; ``convex``: they are weighted means of them.
    """

    keeps_values: bool = False
    convex: bool = True

    def keeps_sign(self, node: Node) -> bool:
        return self.convex

    def unit_out(self, call: Call, units: Sequence[Units], demanded: Units) -> Tensor | None:
        return None if units[0] is None else _redim(along(units[0], 1), len(call.out_shape))

    def required(self, call: Call, units: Sequence[Units], out: Any) -> list[Units]:
        return [None if unit is None else along(unit, 1) for unit in units]

    def demand(self, call: Call, demanded: Any) -> list[Units]:
        if demanded is None:
            return [None]
        return [_redim(along(demanded, 1, first_number=True), len(call.shapes[0]))]

    def family_out(self, call: Call, families: Sequence[Family]) -> Family:
        return families[0] if self.keeps_values else Family.ANALOG


def _redim(unit: Tensor, dims: int) -> Tensor:
    """Give a per-channel unit as many dimensions as the tensor it describes."""
    return unit.reshape(1, -1, *[1] * (dims - 2))


@register_operator(
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
)  # fmt: skip
def average_pool(node: Node, module: nn.Module | None) -> Operator:
    """Average and adaptive average pooling."""
    return PerChannelMap()


@register_operator(torch.mean, "mean", torch.sum, "sum")
def mean(node: Node, module: nn.Module | None) -> Operator | Problem:
    """Mean or sum over spatial dimensions; over channels it is linear too, but its input must have unit 1."""
    dims = _argument(node, 1, "dim", None)
    dims = dims if isinstance(dims, (tuple, list)) else (dims,)
    rank = _rank(node)
    if any(not isinstance(d, int) for d in dims) or any((d % rank if rank else d) == 0 for d in dims):
        return Problem(
            graph.key_of(node),
            f"{node.target if isinstance(node.target, str) else node.target.__name__} over the batch dimension "
            "or over everything mixes samples.",
            "Name the dimensions to reduce, without 0.",
            graph.describe(node),
        )
    if any((d % rank if rank else d) == 1 for d in dims):
        return Activation(SiteKind.GRADED)
    return PerChannelMap()


@register_operator(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, F.interpolate, F.upsample)
def upsample(node: Node, module: Any) -> Operator:
    """Upsampling of every mode but bicubic keeps values in range; nearest keeps spikes."""
    mode = module.mode if module is not None else _argument(node, 3, "mode", "nearest")
    return PerChannelMap(keeps_values=mode in ("nearest", "nearest-exact"), convex=mode != "bicubic")


@register_operator(
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d,
    nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d,
)  # fmt: skip
def padding(node: Node, module: nn.Module | None) -> Operator:
    """Padding with zeros or with the tensor's own values."""
    return PerChannelMap(keeps_values=True)


@register_operator(F.pad, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
def constant_padding(node: Node, module: Any) -> Operator:
    """Padding by function; with a constant other than 0 its input must have unit 1."""
    value = module.value if module is not None else _argument(node, 3, "value", 0)
    pad = module.padding if module is not None else _argument(node, 1, "pad", ())
    rank = _rank(node)
    reaches_channel = rank > 0 and len(pad) // 2 >= rank - 1  # pads the channel dimension as well
    if value or reaches_channel:
        return Activation(SiteKind.GRADED)
    return PerChannelMap(keeps_values=True)


def _argument(node: Node, place: int, name: str, default: Any) -> Any:
    """Return an argument of a call given by place or by name."""
    return node.kwargs.get(name, node.args[place] if len(node.args) > place else default)


def _rank(node: Node) -> int:
    """Return how many dimensions the input of a call has, 0 where that is not known."""
    source = node.args[0] if node.args else None
    return len(graph.info(source).shape or ()) if isinstance(source, Node) else 0
