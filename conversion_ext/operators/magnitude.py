"""The magnitude: homogeneous but stateful, since the sum of magnitudes is not the magnitude of the sum."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import Node

from conversion_ext import graph
from conversion_ext.nn.magnitude import SpikingMagnitude
from conversion_ext.operators.base import Choices, Elementwise, NodeContext, Operator, register_operator
from conversion_ext.operators.bounds import Interval

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude(Elementwise):
    """A spiking magnitude: it sees the time axis, and moves by no more than its input does."""

    @property
    def stateful(self) -> bool:
        return True

    def never_negative(self, inputs: Sequence[bool]) -> bool:
        return True

    def bounds(self, context: NodeContext, inputs: Sequence[Interval]) -> Interval | None:
        (x,) = inputs
        least = torch.where((x.low < 0) & (x.high > 0), 0.0, torch.minimum(x.low.abs(), x.high.abs()))
        return Interval(least, torch.maximum(x.low.abs(), x.high.abs()))

    def spiking_form(self, module: nn.Module | None, choices: Choices) -> SpikingMagnitude:
        return SpikingMagnitude()


@register_operator(torch.abs, operator.abs, "abs", SpikingMagnitude)
def magnitude(node: Node, module: nn.Module | None) -> Operator:
    """Magnitude; that of a size is a number."""
    return Operator() if graph.info(node).is_constant else Magnitude()
