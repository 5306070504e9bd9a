"""Functional layers become modules: pooling, convolution, linear, normalization, dropout, upsampling."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from conversion_ext.capture.passes.base import layers
from conversion_ext.capture.passes.calls import CallsToModules, RefusedError, Rule, parameter
from conversion_ext.graph import info, refresh

__all__ = ["RULES", "FunctionalLayers"]


def _max_pool(kind: type[nn.Module]) -> Rule:
    def rule(
        input: Node, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> nn.Module | None:  # fmt: skip
        return None if return_indices else kind(kernel_size, stride or None, padding, dilation, ceil_mode=ceil_mode)

    return rule


def _adaptive_max_pool(kind: type[nn.Module]) -> Rule:
    return lambda input, output_size, return_indices=False: None if return_indices else kind(output_size)


def _adaptive_avg_pool(kind: type[nn.Module]) -> Rule:
    return lambda input, output_size: kind(output_size)


def _avg_pool(kind: type[nn.Module]) -> Rule:
    def rule(
        input: Node, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> nn.Module:  # fmt: skip
        extra = {} if divisor_override is None else {"divisor_override": divisor_override}
        return kind(kernel_size, stride or None, padding, ceil_mode, count_include_pad, **extra)

    return rule


def _power_pool(kind: type[nn.Module]) -> Rule:
    return lambda input, norm_type, kernel_size, stride=None, ceil_mode=False: kind(
        norm_type, kernel_size, stride, ceil_mode
    )


def _with(module: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Put the network's own parameters into a module that was built without memory."""
    module.weight, module.bias = parameter(weight), parameter(bias)
    return module


def _conv(kind: Any) -> Rule:
    def rule(
        input: Node, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1,
    ) -> nn.Module:  # fmt: skip
        sizes = (weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]))
        return _with(kind(*sizes, stride, padding, dilation, groups, device="meta"), weight, bias)

    return rule


def _conv_transpose(kind: Any) -> Rule:
    def rule(
        input: Node, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
    ) -> nn.Module:  # fmt: skip
        sizes = (weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]))
        module = kind(*sizes, stride, padding, output_padding, groups, dilation=dilation, device="meta")
        return _with(module, weight, bias)

    return rule


def _linear(input: Node, weight: Tensor, bias: Tensor | None = None) -> nn.Module | None:
    if weight.dim() == 1:
        return None
    return _with(nn.Linear(weight.shape[1], weight.shape[0], device="meta"), weight, bias)


def _times_matrix(input: Node, other: Tensor) -> nn.Module | None:
    """A product with a constant matrix on the right is a linear layer."""
    return _linear(input, other.t()) if isinstance(other, Tensor) and other.dim() == 2 else None


def _mm(input: Node, mat2: Tensor) -> nn.Module | None:
    return _times_matrix(input, mat2)


_BATCH_NORMS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _batch_norm(
    input: Node, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> nn.Module | None:  # fmt: skip
    if training or running_mean is None or running_var is None:
        raise RefusedError("normalizes with the statistics of the batch, in evaluation too.", "Use running statistics.")
    shape = info(input).shape
    if shape is None or (weight is None) != (bias is None):
        return None
    module = _BATCH_NORMS[len(shape)](len(running_mean), eps, affine=False, device="meta")
    module.running_mean, module.running_var = running_mean.detach(), running_var.detach()
    module.num_batches_tracked = torch.zeros((), dtype=torch.long, device=running_mean.device)
    if weight is not None:
        module.affine = True
        _with(module, weight, bias)
    return module


def _layer_norm(
    input: Node, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> nn.Module | None:
    if weight is None:
        return nn.LayerNorm(normalized_shape, eps, elementwise_affine=False) if bias is None else None
    return _with(nn.LayerNorm(normalized_shape, eps, device="meta"), weight, bias)


def _group_norm(
    input: Node, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> nn.Module | None:
    if weight is None or bias is None:
        return None
    return _with(nn.GroupNorm(num_groups, len(weight), eps, device="meta"), weight, bias)


def _dropout(input: Node, p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    if training and p > 0:
        raise RefusedError("drops at random in evaluation mode too.", "Pass training=self.training, or use nn.Dropout.")
    return nn.Identity()


def _plain_dropout(input: Node, p: float, train: bool) -> nn.Module:
    return _dropout(input, p, train)


def _interpolate(
    input: Node, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None, antialias: bool = False,
) -> nn.Module | None:  # fmt: skip
    return None if antialias else nn.Upsample(size, scale_factor, mode, align_corners, recompute_scale_factor)


def power_average_as_sum(pool: Any) -> nn.Module | None:
    """Return what stands for ``nn.LPPool2d(1, k)``, which adds up its windows: an average without a divisor."""
    if type(pool) is not nn.LPPool2d or pool.norm_type != 1 or pool.ceil_mode:
        return None
    return nn.AvgPool2d(pool.kernel_size, pool.stride, divisor_override=1)


_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
RULES: Mapping[Any, Rule] = MappingProxyType({
    **dict.fromkeys(_DROPOUTS, _dropout),
    torch.dropout: _plain_dropout,
    F.max_pool1d: _max_pool(nn.MaxPool1d), torch.max_pool1d: _max_pool(nn.MaxPool1d),
    F.max_pool2d: _max_pool(nn.MaxPool2d), torch.max_pool2d: _max_pool(nn.MaxPool2d),
    F.max_pool3d: _max_pool(nn.MaxPool3d), torch.max_pool3d: _max_pool(nn.MaxPool3d),
    F.avg_pool1d: _avg_pool(nn.AvgPool1d), F.avg_pool2d: _avg_pool(nn.AvgPool2d), F.avg_pool3d: _avg_pool(nn.AvgPool3d),
    F.adaptive_avg_pool1d: _adaptive_avg_pool(nn.AdaptiveAvgPool1d),
    F.adaptive_avg_pool2d: _adaptive_avg_pool(nn.AdaptiveAvgPool2d),
    F.adaptive_avg_pool3d: _adaptive_avg_pool(nn.AdaptiveAvgPool3d),
    F.adaptive_max_pool1d: _adaptive_max_pool(nn.AdaptiveMaxPool1d),
    F.adaptive_max_pool2d: _adaptive_max_pool(nn.AdaptiveMaxPool2d),
    F.adaptive_max_pool3d: _adaptive_max_pool(nn.AdaptiveMaxPool3d),
    F.lp_pool1d: _power_pool(nn.LPPool1d), F.lp_pool2d: _power_pool(nn.LPPool2d),
    F.lp_pool3d: _power_pool(nn.LPPool3d),
    F.conv1d: _conv(nn.Conv1d), F.conv2d: _conv(nn.Conv2d), F.conv3d: _conv(nn.Conv3d),
    F.conv_transpose1d: _conv_transpose(nn.ConvTranspose1d),
    F.conv_transpose2d: _conv_transpose(nn.ConvTranspose2d),
    F.conv_transpose3d: _conv_transpose(nn.ConvTranspose3d),
    F.linear: _linear,
    torch.matmul: _times_matrix, operator.matmul: _times_matrix, "matmul": _times_matrix, torch.mm: _mm, "mm": _mm,
    F.batch_norm: _batch_norm, F.layer_norm: _layer_norm, F.group_norm: _group_norm,
    F.interpolate: _interpolate,
})  # fmt: skip


class FunctionalLayers(CallsToModules):
    """Functional layers become modules that hold the same Parameter objects; random ones are refused.

    ``nn.LPPool2d(1, k)`` becomes the average pool that adds up its windows.
    """

    def __init__(self) -> None:
        super().__init__(RULES)

    def run(self, model: GraphModule) -> None:
        """Replace calls, then sums of windows."""
        super().run(model)
        for node, pool in layers(model, nn.LPPool2d):
            total = power_average_as_sum(pool)
            if total is not None:
                parent, _, name = str(node.target).rpartition(".")
                setattr(model.get_submodule(parent), name, total.eval())
        refresh(model)

    def ensures(self, model: GraphModule) -> list[str]:
        """No covered call is left, and no sum of windows in another form."""
        left = [node.name for node, pool in layers(model, nn.LPPool2d) if power_average_as_sum(pool) is not None]
        return super().ensures(model) + [f"{name} adds up windows." for name in left]
