"""Families of torch.nn layers, and how their weights are arranged: the one home of these facts."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

__all__ = [
    "ADAPTIVE_AVERAGE_POOLS", "AVERAGE_POOLS", "BATCH_NORMS", "CONSTANT_PADS", "CONVOLUTIONS", "FORWARD_WEIGHTS",
    "MAX_POOLS", "TRANSPOSED", "WEIGHTS", "affine_of", "along_inputs", "along_outputs", "like", "output_rows",
    "pads_zeros", "spatial_dims", "zeros_around",
]  # fmt: skip

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
FORWARD_WEIGHTS = (*CONVOLUTIONS, nn.Linear)
"""Layers whose weight is [out, in / groups, ...]."""
WEIGHTS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
MAX_POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
CONSTANT_PADS = (
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
)  # fmt: skip
ADAPTIVE_AVERAGE_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def affine_of(norm: Any) -> tuple[Tensor, Tensor]:
    """Return (gain, shift) [C] in float64 of a BatchNorm in evaluation mode: ``y = gain * x + shift``."""
    gain = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight.detach().double()
    shift = -norm.running_mean.double() * gain
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return gain, shift


def along_inputs(layer: Any, factors: Tensor) -> Tensor:
    """Return ``factors``, one per input channel, shaped to broadcast over the weight of ``layer``, groups and all."""
    weight = layer.weight
    rest = [1] * (weight.dim() - 2)
    if isinstance(layer, TRANSPOSED):  # weight [in, out / groups, ...]
        return factors.reshape(-1, 1, *rest)
    if isinstance(layer, nn.Linear):
        return factors[None]
    return _by_group(factors, layer.groups, weight).reshape(len(weight), -1, *rest)


def along_outputs(layer: Any, factors: Tensor) -> Tensor:
    """Return ``factors``, one per output channel, shaped to broadcast over the weight of ``layer``, groups and all."""
    weight = layer.weight
    rest = [1] * (weight.dim() - 2)
    if isinstance(layer, TRANSPOSED):  # input channel i belongs to one group
        return _by_group(factors, layer.groups, weight).reshape(len(weight), -1, *rest)
    return factors.reshape(-1, 1, *rest)


def _by_group(factors: Tensor, groups: int, weight: Tensor) -> Tensor:
    """Return the factors of the group that each row of ``weight`` belongs to."""
    return factors.reshape(groups, -1).repeat_interleave(len(weight) // groups, dim=0)


def output_rows(layer: Any) -> Tensor:
    """Return the weight with the output channels (of one group, where it is transposed) in dimension 0."""
    return layer.weight.movedim(int(isinstance(layer, TRANSPOSED)), 0)


def pads_zeros(layer: Any) -> bool:
    """Return whether a convolution or a pool sees zeros that are not in its input."""
    if getattr(layer, "padding_mode", "zeros") != "zeros" or layer.padding == "valid":
        return False
    if layer.padding == "same":
        return any(size > 1 for size in layer.kernel_size)
    return bool(layer.padding) if isinstance(layer.padding, int) else any(layer.padding)


def zeros_around(node: Node, layer: Any) -> list[tuple[int, int]] | None:
    """Return how many zeros a call puts before and behind each dimension, the last one first.

    ``layer`` is the module that it calls, None for a function. None where it is no such call.
    """
    if type(layer) in CONSTANT_PADS:
        given = {"pad": layer.padding, "value": layer.value}
    elif node.target is F.pad:
        given = inspect.signature(F.pad).bind(*node.args, **node.kwargs).arguments
    else:
        return None
    pad = given["pad"]
    zeros = given.get("mode", "constant") == "constant" and not given.get("value")
    if not zeros or not isinstance(pad, tuple | list) or not all(isinstance(n, int) and n >= 0 for n in pad):
        return None
    return list(zip(pad[::2], pad[1::2], strict=True))


def spatial_dims(layer: Any) -> int:
    """Return over how many dimensions a layer or function works: 2 for nn.AvgPool2d and F.avg_pool2d."""
    kinds = type(layer).__mro__ if isinstance(layer, nn.Module) else (layer,)
    matches = (re.search(r"(\d)d$", kind.__name__) for kind in kinds)
    return next((int(match[1]) for match in matches if match), getattr(layer, "dims", 0))


def like(value: Tensor, old: nn.Parameter) -> nn.Parameter:
    """Return ``value`` as a parameter in the dtype of ``old``, trained where ``old`` is."""
    return nn.Parameter(value.to(old.dtype), requires_grad=old.requires_grad)
