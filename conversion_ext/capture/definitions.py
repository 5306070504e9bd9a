"""Functions that others define: what they compute, in terms of operations that have an operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DEFINITIONS", "SEEN_THROUGH", "largest"]

SEEN_THROUGH = (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d, nn.GLU, nn.CosineSimilarity, nn.PairwiseDistance)
"""Layers of torch.nn that are no more than one of these functions."""


def largest(x: Tensor, dims: Any, keepdim: bool = False) -> Tensor:
    """Return the maximum over ``dims`` as a max-pool over one dimension."""
    rank = x.dim()
    dims = sorted({dim % rank for dim in ((dims,) if isinstance(dims, int) else dims)} if dims != () else range(rank))
    kept = [dim for dim in range(rank) if dim not in dims]
    sizes = [x.size(dim) for dim in kept]
    if 0 not in kept:
        return torch.amax(x, dims, keepdim)  # over the samples: refused where it is met
    if kept == list(range(rank - len(dims))) and len(kept) == 2 and 1 <= len(dims) <= 3:
        pools: dict[int, Callable[..., Any]] = {
            1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d
        }  # fmt: skip
        pooled = pools[len(dims)](x, 1)
        return pooled if keepdim else pooled.flatten(1)
    moved = x.permute(*kept, *dims).reshape(sizes[0], -1, _count(x, dims))
    pooled = F.adaptive_max_pool1d(moved, 1)
    if keepdim:
        return pooled.reshape(*(1 if dim in dims else x.size(dim) for dim in range(rank)))
    return pooled.reshape(*sizes)


def _count(x: Tensor, dims: list[int]) -> int:
    product = 1
    for dim in dims:
        product = product * x.size(dim)
    return product


def _amax(input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    return largest(input, dim, keepdim)


def _amin(input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    return -largest(-input, dim, keepdim)


def _expand_as(input: Tensor, other: Tensor) -> Tensor:
    return input.expand(*other.shape)


def _view_as(input: Tensor, other: Tensor) -> Tensor:
    return input.reshape(other.shape)


def _tile(input: Tensor, *dims: Any) -> Tensor:
    times = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    return input.repeat(*([1] * (input.dim() - len(times))), *times)


def _index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    return input[(slice(None),) * (dim % input.dim()) + (index,)]


def _select(input: Tensor, dim: int, index: int) -> Tensor:
    return input[(slice(None),) * (dim % input.dim()) + (index,)]


def _addmm(input: Any, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = torch.matmul(mat1, mat2)
    return (product if alpha == 1 else product * alpha) + (input if beta == 1 else input * beta)


def _repeat_interleave(input: Tensor, repeats: int, dim: int | None = None) -> Tensor:
    if dim is None or not isinstance(repeats, int):
        raise TypeError("repeat_interleave needs a number of repeats and a dimension")
    return _index_select(input, dim, torch.arange(input.shape[dim]).repeat_interleave(repeats))


def _tensor_split(input: Tensor, indices_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    parts = torch.arange(input.shape[dim]).tensor_split(indices_or_sections)
    sizes = [len(part) for part in parts]
    return torch.split(input, sizes, dim)


def _mean_and(moment: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def both(input: Tensor, dim: Any, **options: Any) -> tuple[Tensor, Tensor]:
        return moment(input, dim, **options), input.mean(dim, keepdim=options.get("keepdim", False))

    return both


def _aminmax(input: Tensor, *, dim: Any = (), keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _amin(input, dim, keepdim), _amax(input, dim, keepdim)


def _softmin(input: Tensor, dim: int, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    return F.softmax(-input, dim, dtype=dtype)


def _rsub(input: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    return other - (input if alpha == 1 else input * alpha)


def _lerp(input: Tensor, end: Any, weight: Any) -> Tensor:
    return input + (end - input) * weight


def _addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Tensor:
    return input + tensor1 * tensor2 * value


def _addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Tensor:
    return input + tensor1 / tensor2 * value


def _baddbmm(input: Any, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _addmm(input, batch1, batch2, beta=beta, alpha=alpha)


def _clamp_min(input: Tensor, min: Any) -> Tensor:
    return torch.clamp(input, min=min)


def _clamp_max(input: Tensor, max: Any) -> Tensor:
    return torch.clamp(input, max=max)


def _instance_norm(
    input: Tensor, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if use_input_stats:
        return F.group_norm(input, input.shape[1], weight, bias, eps)
    return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)


def _hstack(tensors: Any) -> Tensor:
    return torch.cat(list(tensors), 0 if tensors[0].dim() == 1 else 1)


def _lp_pool(pool: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def sums(input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Tensor:
        rank = {F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3}[pool]
        sizes = [kernel_size] * rank if isinstance(kernel_size, int) else list(kernel_size)
        count = 1
        for size in sizes:
            count *= size
        mean = pool(input if norm_type == 1 else input.pow(norm_type), kernel_size, stride, 0, ceil_mode)
        return mean * count if norm_type == 1 else (F.relu(mean) * count).pow(1 / norm_type)

    return sums


# By the function, or by the name of the method: a method and a function of one name mean the same.
DEFINITIONS: Mapping[Any, Callable[..., Any]] = MappingProxyType({
    "amax": _amax, "amin": _amin, "expand_as": _expand_as, "view_as": _view_as, "reshape_as": _view_as, "tile": _tile,
    "index_select": _index_select, "select": _select, "addmm": _addmm, "lp_pool1d": _lp_pool(F.avg_pool1d),
    "lp_pool2d": _lp_pool(F.avg_pool2d), "lp_pool3d": _lp_pool(F.avg_pool3d),
    "repeat_interleave": _repeat_interleave, "tensor_split": _tensor_split, "std_mean": _mean_and(torch.std),
    "var_mean": _mean_and(torch.var), "aminmax": _aminmax, "softmin": _softmin, "rsub": _rsub, "lerp": _lerp,
    "addcmul": _addcmul, "addcdiv": _addcdiv, "baddbmm": _baddbmm, "hstack": _hstack, "clamp_min": _clamp_min,
    "clamp_max": _clamp_max, "instance_norm": _instance_norm,
})  # fmt: skip
