"""Weight layers: they take the unit their consumer demands and absorb it, ``W * unit_in / unit_out``."""

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
from conversion_ext.operators.base import Call, Operator, Units, ones, register_operator

__all__ = ["Synapse"]


@dataclass(frozen=True)
class Synapse(Operator):
    """A layer of weights whose features lie along dimension ``dim`` of its input and output."""

    dim: int = 1

    def unit_out(self, call: Call, units: Sequence[Units], demanded: Units) -> Tensor:
        if demanded is None:
            return ones(call.out_shape)
        return torch.nan_to_num(along(demanded, self.dim, first_number=True), nan=1.0)

    def natural(self, call: Call, units: Sequence[Units]) -> None:
        return None

    def required(self, call: Call, units: Sequence[Units], out: Any) -> list[Units]:
        return [None if unit is None else along(unit, self.dim) for unit in units]

    def fold(self, call: Call, units: Sequence[Units], out: Any) -> nn.Module | None:
        unit_in = _vector(units[0], self.dim, call.shapes[0])
        unit_out = _vector(out, self.dim, call.out_shape)
        if bool((unit_in == 1).all()) and bool((unit_out == 1).all()):
            return None
        module = copy.deepcopy(call.module)
        if isinstance(module, layers.BATCH_NORMS):
            return _scaled_batch_norm(module, unit_in, unit_out)
        weight = module.weight.detach().double()
        unit_in, unit_out = unit_in.to(weight.device), unit_out.to(weight.device)
        scaled = weight * layers.along_inputs(module, unit_in) / layers.along_outputs(module, unit_out)
        module.weight = layers.like(scaled, module.weight)
        if module.bias is not None:
            module.bias = layers.like(module.bias.detach().double() / unit_out, module.bias)
        return module


def along(unit: Tensor, dim: int, first_number: bool = False) -> Tensor:
    """Return ``unit`` kept along ``dim`` only: the first entry of every other dimension.

    With ``first_number`` the first entry that is a number, since a demand may name only a part of them.
    """
    dim %= unit.dim()
    if first_number:
        flat = unit.movedim(dim, 0).reshape(unit.shape[dim], -1)
        index = (~flat.isnan()).to(torch.uint8).argmax(dim=1, keepdim=True)
        shape = [1] * unit.dim()
        shape[dim] = unit.shape[dim]
        return flat.gather(1, index).reshape(shape)
    for other in range(unit.dim()):
        if other != dim:
            unit = unit.narrow(other, 0, 1)
    return unit


def _vector(unit: Tensor | None, dim: int, shape: Sequence[int]) -> Tensor:
    """Return a per-channel unit as a vector with one entry per channel."""
    dim %= len(shape)
    assert unit is not None
    return unit.movedim(dim, -1).reshape(-1).expand(shape[dim]).double()


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
