"""Max-pooling: homogeneous but stateful, since the pool of spikes is not the spike train of the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.fx import Node
from torch.nn import functional as F

from conversion_ext import graph
from conversion_ext.errors import Problem
from conversion_ext.graph.layers import MAX_POOLS
from conversion_ext.operators.base import Call, Operator, register_operator
from conversion_ext.operators.per_channel import PerChannelMap
from conversion_ext.types import Family

__all__ = ["Pool"]


@dataclass(frozen=True)
class Pool(PerChannelMap):
    """A spiking max-pool: it passes the channel's unit on and sees the time axis."""

    @property
    def stateful(self) -> bool:
        return True

    def family_out(self, call: Call, families: Sequence[Family]) -> Family:
        return families[0]  # the largest count moves by no more than the counts do


@register_operator(*MAX_POOLS)
def max_pool(node: Node, module: nn.Module | None) -> Operator | Problem:
    """Max-pooling of every geometry."""
    if getattr(module, "return_indices", False):
        return Problem(
            graph.key_of(node),
            "max-pooling with return_indices=True hands out positions, which spikes do not carry.",
            "Use a network without max-unpooling.",
            graph.describe(node),
        )
    return Pool()


@register_operator(F.max_pool1d, F.max_pool2d, F.max_pool3d)
def functional_max_pool(node: Node, module: nn.Module | None) -> Problem:
    """A functional pool that could not be made a module: its geometry depends on the input."""
    return Problem(
        graph.key_of(node),
        "the geometry of this max-pooling is computed from the input.",
        "Give kernel size, stride and padding as numbers.",
        graph.describe(node),
    )
