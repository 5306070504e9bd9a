"""What the add-on's own modules mean when they stand in a converted graph."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from conversion_ext.network.site import SpikingSite
from conversion_ext.network.time import ExpandTime
from conversion_ext.nn.channel_scale import ChannelScale
from conversion_ext.nn.differential import Differential
from conversion_ext.nn.magnitude import SpikingMagnitude
from conversion_ext.nn.max_pool import SpikingMaxPool
from conversion_ext.nn.softmax import SpikingSoftmax
from conversion_ext.operators.arithmetic import Multiple
from conversion_ext.operators.base import Call, Elementwise, Operator, Units, ones, register_operator
from conversion_ext.operators.magnitude import Magnitude
from conversion_ext.operators.max_pool import Pool
from conversion_ext.types import Family

__all__ = ["Spiking"]


@dataclass(frozen=True)
class Spiking(Operator):
    """A site: it demands lambda and emits what its spikes are worth, so folding leaves bare neurons."""

    @property
    def stateful(self) -> bool:
        return True

    def unit_out(self, call: Call, units: Sequence[Units], demanded: Units) -> Tensor:
        return _full(call.module.amplitude(len(call.out_shape)), call)

    def required(self, call: Call, units: Sequence[Units], out: Any) -> list[Units]:
        return self.demand(call, out)

    def demand(self, call: Call, demanded: Any) -> list[Units]:
        return [_full(call.module.view(len(call.out_shape)), call)]

    def fold(self, call: Call, units: Sequence[Units], out: Any) -> nn.Module:
        site = deepcopy(call.module)
        site.scaled = False
        return site

    def family_out(self, call: Call, families: Sequence[Family]) -> Family:
        return call.module.spec.family


def _full(unit: Tensor, call: Call) -> Tensor:
    return unit.double().reshape(tuple(unit.shape) or (1,) * len(call.out_shape))


@dataclass(frozen=True)
class Graded(Operator):
    """A stateful function of its mean input: unit 1 on every side."""

    @property
    def stateful(self) -> bool:
        return True

    def unit_out(self, call: Call, units: Sequence[Units], demanded: Units) -> Tensor:
        return ones(call.out_shape)

    def required(self, call: Call, units: Sequence[Units], out: Any) -> list[Units]:
        return [ones(shape) for shape in call.shapes]

    def demand(self, call: Call, demanded: Any) -> list[Units]:
        return self.required(call, [], None)

    def family_out(self, call: Call, families: Sequence[Family]) -> Family:
        return call.module.family_out(*families)


@register_operator(SpikingSite)
def spiking_site(node: Node, module: nn.Module | None) -> Operator:
    """A spiking site."""
    return Spiking()


@register_operator(SpikingMaxPool)
def spiking_max_pool(node: Node, module: nn.Module | None) -> Operator:
    """A spiking max-pool."""
    return Pool()


@register_operator(SpikingMagnitude)
def spiking_magnitude(node: Node, module: nn.Module | None) -> Operator:
    """A spiking magnitude."""
    return Magnitude()


@register_operator(Differential, SpikingSoftmax)
def of_the_mean(node: Node, module: nn.Module | None) -> Operator:
    """A differential operator, or the softmax of what came in so far."""
    return Graded()


@register_operator(ChannelScale)
def channel_scale(node: Node, module: nn.Module | None) -> Operator:
    """A scale per channel."""
    return Multiple()


@register_operator(ExpandTime)
def repeat(node: Node, module: nn.Module | None) -> Operator:
    """Repetition over time: the same value at every step."""
    return Elementwise()
