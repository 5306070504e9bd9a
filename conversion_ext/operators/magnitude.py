"""The magnitude: homogeneous but stateful, since the sum of magnitudes is not the magnitude of the sum."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import Node

from conversion_ext import graph
from conversion_ext.operators.base import Elementwise, Operator, register_operator

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude(Elementwise):
    """A spiking magnitude: it sees the time axis, and moves by no more than its input does."""

    @property
    def stateful(self) -> bool:
        return True

    def keeps_sign(self, node: Node) -> bool:
        return True


@register_operator(torch.abs, operator.abs, "abs")
def magnitude(node: Node, module: nn.Module | None) -> Operator:
    """Magnitude; that of a size is a number."""
    return Operator() if graph.info(node).is_constant else Magnitude()
