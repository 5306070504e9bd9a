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
from conversion_ext.operators.base import Call, Operator, Units, ones, register_operator

__all__ = ["Synapse"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


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
        if isinstance(module, BATCH_NORMS):
            return _scaled_batch_norm(module, unit_in, unit_out)
        weight = module.weight.detach().double()
        gain_in, gain_out = _gains(module, unit_in.to(weight.device), unit_out.to(weight.device), weight)
        module.weight = _like(weight * gain_in / gain_out, module.weight)
        if module.bias is not None:
            module.bias = _like(module.bias.detach().double() / unit_out.to(weight.device), module.bias)
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


def _gains(module: nn.Module, unit_in: Tensor, unit_out: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return what to multiply and divide the weight by, shaped to broadcast over it."""
    if isinstance(module, nn.Linear):
        return unit_in[None, :], unit_out[:, None]
    groups: int = module.groups  # type: ignore[assignment]
    rest = [1] * (weight.dim() - 2)
    if isinstance(module, TRANSPOSED):  # weight [in, out / groups, ...]: input channel i belongs to one group
        per_group = unit_out.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
        return unit_in.reshape(-1, 1, *rest), per_group.reshape(weight.shape[0], -1, *rest)
    per_group = unit_in.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
    return per_group.reshape(weight.shape[0], -1, *rest), unit_out.reshape(-1, 1, *rest)


def _scaled_batch_norm(module: Any, unit_in: Tensor, unit_out: Tensor) -> nn.Module:
    """Express BatchNorm, y = a x + b per channel, in units: mean 0 and variance 1 - eps leave a and b in the affine."""
    mean, variance = module.running_mean.double(), module.running_var.double()
    gain = torch.rsqrt(variance + module.eps)
    if module.affine:
        gain = gain * module.weight.detach().double()
    shift = -mean * gain + (module.bias.detach().double() if module.affine else 0.0)
    scaled = type(module)(module.num_features, eps=module.eps, affine=True).to(module.running_mean)
    scaled.running_var.fill_(1.0 - module.eps)
    scaled.weight = _like(gain * unit_in.to(gain.device) / unit_out.to(gain.device), module.running_mean)
    scaled.bias = _like(shift / unit_out.to(gain.device), module.running_mean)
    return scaled.eval()


def _like(value: Tensor, old: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(old.dtype), requires_grad=old.requires_grad)


@register_operator(*CONVOLUTIONS, *TRANSPOSED)
def convolution(node: Node, module: nn.Module | None) -> Operator:
    """Convolution, any dimension, grouped, depthwise or transposed."""
    return Synapse(dim=1)


@register_operator(nn.Linear)
def linear(node: Node, module: nn.Module | None) -> Operator:
    """Linear layer; its features lie along the last dimension."""
    return Synapse(dim=-1)


@register_operator(*BATCH_NORMS)
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
