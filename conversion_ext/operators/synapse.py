"""Weight layers: they take the unit that their consumer requests and absorb it, ``W * unit_in / unit_out``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from conversion_ext import graph
from conversion_ext.errors import Problem
from conversion_ext.graph import layers
from conversion_ext.operators.base import NodeContext, Operator, Units, first, ones, register_operator
from conversion_ext.operators.bounds import Interval, product

__all__ = ["Synapse"]


@dataclass(frozen=True)
class Synapse(Operator):
    """A layer of weights whose features lie along dimension ``dim`` of its input and output."""

    dim: int = 1

    def output_unit(self, context: NodeContext, units: Sequence[Units], requested: Units) -> Tensor:
        if requested is None:
            return ones(context.out_shape)
        return torch.nan_to_num(self._along(requested), nan=1.0)

    def free_unit(self, context: NodeContext, units: Sequence[Units]) -> None:
        return None

    def input_units(self, context: NodeContext, units: Sequence[Units], output: Any) -> list[Units]:
        return [None if unit is None else self._along(unit) for unit in units]

    def fold(self, context: NodeContext, units: Sequence[Units], output: Any) -> nn.Module | None:
        unit_in = self._vector(units[0], context.shapes[0])
        unit_out = self._vector(output, context.out_shape)
        if bool((unit_in == 1).all()) and bool((unit_out == 1).all()):
            return None
        module = copy.deepcopy(context.module)
        if isinstance(module, layers.BATCH_NORMS):
            return _scaled_batch_norm(module, unit_in, unit_out)
        weight = module.weight.detach().double()
        unit_in, unit_out = unit_in.to(weight.device), unit_out.to(weight.device)
        scaled = weight * layers.along_inputs(module, unit_in) / layers.along_outputs(module, unit_out)
        module.weight = layers.like(scaled, module.weight)
        if module.bias is not None:
            module.bias = layers.like(module.bias.detach().double() / unit_out, module.bias)
        return module

    def bounds(self, context: NodeContext, inputs: Sequence[Interval]) -> Interval | None:
        module = context.module
        if isinstance(module, layers.TRANSPOSED):
            return None
        x = inputs[0].along(self.dim)
        if isinstance(module, layers.BATCH_NORMS):
            gain, bias = layers.affine_of(module)
            weight, groups = gain[:, None, None], len(gain)
        elif isinstance(module, nn.Linear):
            weight, bias, groups = module.weight[:, :, None], module.bias, 1
        else:
            weight, bias, groups = module.weight.flatten(2), module.bias, module.groups
            x = x.with_zero() if layers.pads_zeros(module) else x
        low, high = (self._vector(value, context.shapes[0]) for value in (x.low, x.high))
        shape = [1] * len(context.out_shape)
        shape[self.dim] = -1
        return Interval(*(value.reshape(shape) for value in product(weight, bias, groups, low, high)))

    def _along(self, unit: Tensor) -> Tensor:
        """Return ``unit`` kept along the features only: the first number of every other dimension."""
        return first(unit, [d for d in range(unit.dim()) if d != self.dim % unit.dim()])

    def _vector(self, unit: Tensor | None, shape: Sequence[int]) -> Tensor:
        """Return a unit as a vector with one entry per feature."""
        assert unit is not None
        return unit.movedim(self.dim, -1).reshape(-1).expand(shape[self.dim]).double()


def _scaled_batch_norm(module: Any, unit_in: Tensor, unit_out: Tensor) -> nn.Module:
    """Express BatchNorm, y = a x + b per channel, in units: mean 0 and variance 1 - eps leave a and b in the affine."""
    gain, shift = layers.affine_of(module)
    scaled = type(module)(module.num_features, eps=module.eps, affine=True).to(module.running_mean)
    scaled.running_var.fill_(1.0 - module.eps)
    scaled.requires_grad_(False)
    scaled.weight = layers.like(gain * unit_in.to(gain.device) / unit_out.to(gain.device), scaled.weight)
    scaled.bias = layers.like(shift / unit_out.to(gain.device), scaled.bias)
    return scaled.eval()


@register_operator(*layers.CONVOLUTIONS, *layers.TRANSPOSED)
def convolution(node: Node, module: nn.Module | None) -> Operator:
    """Convolution, any dimension, grouped, depthwise or transposed."""
    return Synapse(dim=1)


@register_operator(nn.Linear)
def linear(node: Node, module: nn.Module | None) -> Operator:
    """Linear layer; its features lie along the last dimension."""
    return Synapse(dim=-1)


@register_operator(*layers.BATCH_NORMS)
def batch_norm(node: Node, module: Any) -> Operator | Problem:
    """BatchNorm that could not be folded: a depthwise affine map with its stored statistics."""
    if module.running_mean is None:
        return Problem(
            graph.key_of(node),
            "BatchNorm without running statistics normalizes each batch by itself, which no single sample defines.",
            "Train it with track_running_stats=True.",
            graph.describe(node),
        )
    return Synapse(dim=1)
