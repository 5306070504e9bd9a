"""Max-pooling: homogeneous but stateful, since the pool of spikes is not the spike train of the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.fx import Node
from torch.nn import functional as F

from conversion_ext import graph
from conversion_ext.errors import Problem
from conversion_ext.graph.layers import MAX_POOLS, spatial_dims
from conversion_ext.nn.max_pool import SpikingMaxPool
from conversion_ext.operators.base import Choices, NodeContext, Operator, register_operator
from conversion_ext.operators.linear_map import LinearMap, input_shape, last_dims
from conversion_ext.types import Family

__all__ = ["Pool"]

COUNTING = ("count", "average", "instant")  # methods that add up, compare and subtract


@dataclass(frozen=True)
class Pool(LinearMap):
    """A spiking max-pool: it passes units on as a mean does, and sees the time axis."""

    @property
    def stateful(self) -> bool:
        return True

    def family_out(self, context: NodeContext, families: Sequence[Family]) -> Family:
        return families[0]  # the largest count moves by no more than the counts do

    def spiking_form(self, module: nn.Module | None, choices: Choices) -> SpikingMaxPool:
        assert module is not None
        return SpikingMaxPool.from_module(module, method=choices.max_pool)

    def not_integer(self, context: NodeContext) -> tuple[str, str] | None:
        method = context.module.method
        if method in COUNTING:
            return None
        return f"weighs spikes by {method!r}, no integers.", 'Use max_pool="count".'


@register_operator(*MAX_POOLS, SpikingMaxPool)
def max_pool(node: Node, module: nn.Module | None) -> Operator | Problem:
    """Max-pooling of every geometry."""
    if getattr(module, "return_indices", False):
        return Problem(
            graph.key_of(node),
            "max-pooling with return_indices=True hands out positions, which spikes do not carry.",
            "Use a network without max-unpooling.",
            graph.describe(node),
        )
    dims = spatial_dims(module)
    if input_shape(node) and len(input_shape(node)) != dims + 2:
        return Problem(
            graph.key_of(node),
            f"it pools {list(input_shape(node)[1:])} values of a sample as if they were rows without channels.",
            "Give it [N, C, ...]: x.unsqueeze(1) before it, squeeze(1) behind it.",
            graph.describe(node),
        )
    return Pool(last_dims(node, dims))


@register_operator(F.max_pool1d, F.max_pool2d, F.max_pool3d)
def functional_max_pool(node: Node, module: nn.Module | None) -> Problem:
    """A functional pool that could not be made a module: its geometry depends on the input."""
    return Problem(
        graph.key_of(node),
        "the geometry of this max-pooling is computed from the input.",
        "Give kernel size, stride and padding as numbers.",
        graph.describe(node),
    )
