"""What the add-on's own modules mean when they stand in a converted graph."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from conversion_ext.network.lookahead import Delay, LookAhead
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.time import ExpandTime, PacedConstant
from conversion_ext.nn.channel_scale import ChannelScale
from conversion_ext.nn.differential import Differential
from conversion_ext.nn.matrix_product import MatrixProduct
from conversion_ext.nn.softmax import SpikingSoftmax
from conversion_ext.operators.arithmetic import Multiple
from conversion_ext.operators.base import Elementwise, NodeContext, Operator, Units, ones, register_operator
from conversion_ext.types import Family

__all__ = ["Spiking"]


@dataclass(frozen=True)
class Spiking(Operator):
    """A site: it demands lambda and emits what its spikes are worth, so folding leaves bare neurons."""

    @property
    def stateful(self) -> bool:
        return True

    def output_unit(self, context: NodeContext, units: Sequence[Units], requested: Units) -> Tensor:
        return _full(context.module.amplitude(len(context.out_shape)), context)

    def input_units(self, context: NodeContext, units: Sequence[Units], output: Any) -> list[Units]:
        return self.requested_units(context, output)

    def requested_units(self, context: NodeContext, requested: Any) -> list[Units]:
        return [_full(context.module.view(len(context.out_shape)), context)]

    def fold(self, context: NodeContext, units: Sequence[Units], output: Any) -> nn.Module:
        site = deepcopy(context.module)
        site.scaled = False
        return site

    def family_out(self, context: NodeContext, families: Sequence[Family]) -> Family:
        return context.module.spec.family


def _full(unit: Tensor, context: NodeContext) -> Tensor:
    """Return a unit as all units are: on the CPU, in float64, in the dimensions of the output."""
    return unit.cpu().double().reshape(tuple(unit.shape) or (1,) * len(context.out_shape))


@dataclass(frozen=True)
class Graded(Operator):
    """A stateful function of its mean input: unit 1 on every side."""

    @property
    def stateful(self) -> bool:
        return True

    def output_unit(self, context: NodeContext, units: Sequence[Units], requested: Units) -> Tensor:
        return ones(context.out_shape)

    def input_units(self, context: NodeContext, units: Sequence[Units], output: Any) -> list[Units]:
        return [ones(shape) for shape in context.shapes]

    def requested_units(self, context: NodeContext, requested: Any) -> list[Units]:
        return self.input_units(context, [], None)

    def family_out(self, context: NodeContext, families: Sequence[Family]) -> Family:
        return context.module.family_out(*families)


@register_operator(SpikingSite)
def spiking_site(node: Node, module: nn.Module | None) -> Operator:
    """A spiking site."""
    return Spiking()


@register_operator(Differential, MatrixProduct, SpikingSoftmax)
def of_the_mean(node: Node, module: nn.Module | None) -> Operator:
    """A differential operator, a product of two streams, or the softmax of what came in so far."""
    return Graded()


@register_operator(ChannelScale)
def channel_scale(node: Node, module: nn.Module | None) -> Operator:
    """A scale per channel."""
    return Multiple()


@dataclass(frozen=True)
class ReadAhead(Elementwise):
    """A clock in front of a sum: in the unit of its input, sums of several steps."""

    def family_out(self, context: NodeContext, families: Sequence[Family]) -> Family:
        return families[0] if context.module.idle else Family.ANALOG


@register_operator(LookAhead)
def read_ahead(node: Node, module: nn.Module | None) -> Operator:
    """A shortcut read further ahead than the main path, or an output."""
    return ReadAhead()


@dataclass(frozen=True)
class Paced(Elementwise):
    """A value of which a constant part comes in other shares; folding puts that part into the unit of the value."""

    def fold(self, context: NodeContext, units: Sequence[Units], output: Any) -> nn.Module | None:
        unit = units[0]
        if unit is None:
            return None
        constant = context.module.constant
        return PacedConstant((constant.double() / unit.to(constant.device)).to(constant.dtype), context.module.pace)

    def family_out(self, context: NodeContext, families: Sequence[Family]) -> Family:
        return Family.ANALOG


@register_operator(PacedConstant)
def paced_constant(node: Node, module: nn.Module | None) -> Operator:
    """A constant part that arrives at the pace of weighted spikes."""
    return Paced()


@register_operator(ExpandTime, Delay)
def repeat(node: Node, module: nn.Module | None) -> Operator:
    """Repetition over time, or a delay: the same values."""
    return Elementwise()
