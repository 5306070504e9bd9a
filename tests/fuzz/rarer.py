"""Rarer steps of random networks: what is registered beside the layers and movements of every network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RARER", "RARER_JOINS"]

Drawn = tuple[Callable[..., Any], str]


class Builder(Protocol):
    """What draws a network: its random numbers, and how it adds layers and parameters."""

    r: Any

    def choice(self, *options: Any) -> Any:
        """Return one of the options."""
        ...

    def layer(self, net: nn.Module, module: Any) -> Any:
        """Add a layer and return what calls it."""
        ...

    def constant(self, net: nn.Module, *shape: int) -> Callable[[], Tensor]:
        """Add a parameter or buffer and return what reads it."""
        ...


def functions(build: Builder, net: nn.Module, v: Tensor) -> Drawn:
    """Activations and functions that are not homogeneous."""
    C, dim, layer = v.shape[1], build.r.randrange(1, v.dim()), build.layer
    level, low, high = build.choice(0.0, 0.1), build.choice(-1.0, 0.0), build.choice(0.5, 1.5)
    return build.choice(
        (F.gelu, "gelu"),
        (lambda x: F.gelu(x, approximate="tanh"), "gelu(tanh)"),
        (F.hardswish, "hardswish"),
        (lambda x: F.elu(x, 0.5), "elu(0.5)"),
        (F.selu, "selu"),
        (F.celu, "celu"),
        (F.mish, "mish"),
        (lambda x: F.softplus(x, 2.0), "softplus(2)"),
        (F.softsign, "softsign"),
        (F.logsigmoid, "logsigmoid"),
        (F.hardsigmoid, "hardsigmoid"),
        (layer(net, nn.PReLU(C)), "nn.PReLU(C)"),
        (lambda x: F.log_softmax(x, dim), f"log_softmax({dim})"),
        (lambda x: F.softmin(x, dim), f"softmin({dim})"),
        (layer(net, nn.Tanhshrink()), "nn.Tanhshrink"),
        (layer(net, nn.Softmin(dim)), "nn.Softmin"),
        (lambda x: F.threshold(x, level, 0.0), f"threshold({level})"),
        (lambda x: torch.clamp_max(x, high), "clamp_max"),
        (lambda x: torch.where(x > level, x, 0.0), f"where(x > {level}, x, 0)"),
        (lambda x: torch.clip(x, low, high), f"clip({low}, {high})"),
        (lambda x: x.clamp_(low, high), "clamp_"),
        (lambda x: x.clamp_min(low), f"clamp_min({low})"),
        (lambda x: torch.max(x, torch.zeros_like(x)), "max(x, 0)"),
        (lambda x: torch.maximum(x, torch.tensor(0.0)), "maximum(x, 0.)"),
        (lambda x: x * (x > 0), "x * (x > 0)"),
        (lambda x: F.rrelu(x, 0.1, 0.3), "rrelu"),
        (lambda x: x.masked_fill(x < level, 0.0), f"masked_fill({level})"),
        (lambda x: x**2, "x ** 2"),
        (lambda x: torch.pow(x.abs() + 0.1, 0.5), "pow(0.5)"),
        (torch.square, "square"),
        (lambda x: (x.abs() + 1).sqrt(), "sqrt"),
        (lambda x: (x.abs() + 1).log(), "log"),
        (lambda x: (-x.abs()).exp(), "exp"),
        (lambda x: 1 / (1 + x.abs()), "1 / (1 + |x|)"),
        (lambda x: (x.abs() + 1).rsqrt(), "rsqrt"),
        (lambda x: x.sigmoid_(), "sigmoid_"),
        (lambda x: x.tanh_(), "tanh_"),
        (lambda x: x.abs_(), "abs_"),
        (lambda x: x.neg_(), "neg_"),
        (lambda x: x.clone().zero_() + x, "zero_ + x"),
    )


def norms(build: Builder, net: nn.Module, v: Tensor) -> Drawn:
    """Normalizations and statistics over dimensions."""
    C, dim, layer, keep = v.shape[1], build.r.randrange(1, v.dim()), build.layer, build.choice(True, False)
    ddof, p = build.choice(0, 1), build.choice(1.0, 2.0)
    spatial: Any = (nn.InstanceNorm1d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[min(v.dim() - 2, 3)]
    return build.choice(
        (layer(net, nn.LayerNorm(v.shape[-1])), "nn.LayerNorm"),
        (lambda x: F.layer_norm(x, x.shape[1:]), "layer_norm"),
        (layer(net, nn.GroupNorm(1, C)), "nn.GroupNorm(1)"),
        (lambda x: F.group_norm(x, C, eps=0.1), "group_norm(C, 0.1)"),
        (layer(net, spatial(C)), "nn.InstanceNorm"),
        (F.instance_norm, "instance_norm"),
        (lambda x: F.local_response_norm(x, 2, k=1.5), "local_response_norm"),
        (lambda x: F.normalize(x, p, dim, 0.1), f"normalize({p}, {dim}, 0.1)"),
        (lambda x: x.std(dim, keepdim=keep), f"std({dim}, {keep})"),
        (lambda x: torch.var(x, dim, correction=ddof, keepdim=keep), f"var({dim}, {ddof}, {keep})"),
        (lambda x: x.norm(p, dim, keep), f"norm({p}, {dim}, {keep})"),
        (lambda x: x.amax(dim, keep), f"amax({dim})"),
        (lambda x: torch.linalg.vector_norm(x, p, dim), f"vector_norm({p}, {dim})"),
        (lambda x: torch.max(x, dim, keepdim=keep)[0], f"max({dim}, {keep})[0]"),
        (lambda x: x.amin(dim, keep), "amin"),
        (lambda x: x.logsumexp(dim, keep), f"logsumexp({dim})"),
        (lambda x: x.min(dim).values, f"min({dim}).values"),
        (lambda x: F.glu(x, dim), f"glu({dim})"),
        (lambda x: x.prod(dim), f"prod({dim})"),
        (lambda x: x.cumsum(dim), f"cumsum({dim})"),
        (lambda x: x.median(dim)[0], f"median({dim})[0]"),
        (lambda x: x - x.mean(), "x - x.mean()"),
        (lambda x: x.sub_(x.mean(dim, keepdim=True)), f"sub_(mean({dim}))"),
        (lambda x: x.div_(1 + x.abs().amax(dim, keepdim=True)), f"div_(1 + amax({dim}))"),
    )


def places(build: Builder, net: nn.Module, v: Tensor) -> Drawn:
    """Views and what is written through them, parts by index, resampling."""
    r, a = build.r, build.r.randrange(1, v.dim())
    n, rank = v.shape[a], v.dim()
    at = (slice(None),) * a
    index, half, last = torch.tensor([r.randrange(n) for _ in range(3)]), max(1, n // 2), v.shape[-1]
    mode = build.choice("nearest", "linear", "bilinear", "trilinear", "bicubic", "area", "nearest-exact")
    corners = True if mode in ("linear", "bilinear", "trilinear", "bicubic") and r.random() < 0.5 else None
    size = [r.choice((2, 3, 5)) for _ in range(rank - 2)]

    def written(x: Tensor, change: Callable[[Tensor], Any]) -> Tensor:
        y = x + 0
        change(y)
        return y

    def assigned(x: Tensor, value: Any) -> Tensor:
        y = x.clone()
        y[(*at, slice(half))] = value(y[(*at, slice(half))])
        return y

    return build.choice(
        (lambda x: written(x, lambda y: y[(*at, slice(half))].relu_()), f"[:{half}].relu_() at {a}"),
        (lambda x: written(x, lambda y: y.transpose(a, -1).mul_(0.5)), f"transpose({a}, -1).mul_"),
        (lambda x: written(x, lambda y: y.flatten(1).add_(0.3)), "flatten(1).add_"),
        (lambda x: written(x, lambda y: y.chunk(2, a)[-1].neg_()), f"chunk(2, {a})[-1].neg_"),
        (lambda x: written(x, lambda y: y.select(a, 0).zero_()), f"select({a}, 0).zero_"),
        (lambda x: assigned(x, lambda part: 0.25), f"[:{half}] = 0.25"),
        (lambda x: assigned(x, F.relu), "[..] = relu"),
        (lambda x: assigned(x, lambda part: part * 2), f"[:{half}] = 2 * part"),
        (lambda x: x[..., None], "[..., None]"),
        (lambda x: x.index_select(a, index), f"index_select({a}, {index.tolist()})"),
        (lambda x: x[:, :, ::2], "[:, :, ::2]"),
        (lambda x: x[(*at, index)], f"[{index.tolist()}] at {a}"),
        (lambda x: x.select(a, n - 1), f"select({a}, {n - 1})"),
        (lambda x: torch.gather(x, a, torch.zeros_like(x, dtype=torch.long)), f"gather({a})"),
        (lambda x: x.tile(2, 1), "tile(2, 1)"),
        (lambda x: x.repeat_interleave(2, a), f"repeat_interleave(2, {a})"),
        (lambda x: torch.hstack(x.unbind(a)), f"hstack(unbind({a}))"),
        (lambda x: x.unfold(a, 2, 1), f"unfold({a}, 2, 1)"),
        (lambda x: x.tensor_split(2, a)[0], f"tensor_split(2, {a})[0]"),
        (lambda x: x.diagonal(0, 1, -1), "diagonal"),
        (lambda x: x.unflatten(a, (-1, 1)), f"unflatten({a})"),
        (lambda x: x.rot90(1, (1, -1)), "rot90"),
        (lambda x: x.H, "H"),
        (lambda x: x.as_strided((x.size(0), last), (x.stride(0), x.stride(-1))), "as_strided"),
        (lambda x: x.mT, "mT"),
        (lambda x: F.pixel_unshuffle(x, 2), "pixel_unshuffle"),
        (lambda x: F.channel_shuffle(x, 2), "channel_shuffle"),
        (
            lambda x: F.interpolate(x, size=size, mode=mode, align_corners=corners),
            f"interpolate({size}, {mode}, {corners})",
        ),
        (lambda x: F.unfold(x, 2, padding=1), "F.unfold(2)"),
        (lambda x: F.adaptive_max_pool2d(x, 1), "adaptive_max_pool2d"),
        (lambda x: F.fold(F.unfold(x, 2), x.shape[2:], 2), "fold(unfold)"),
        (lambda x: x.tril(), "tril"),
        (lambda x: F.dropout(x, 0.5, training=False), "dropout"),
        (lambda x: x.to(torch.float64).type_as(x), "casts"),
        (lambda x: torch.ravel(x).view(x.shape), "ravel"),
        (lambda x: x.squeeze().view(x.shape), "squeeze"),
        (lambda x: x.new_zeros(x.shape) + x, "new_zeros + x"),
        (lambda x: torch.full_like(x, 0.5) - x, "full_like - x"),
        (lambda x: torch.cat((x.mean(a, keepdim=True).expand_as(x), x), 1), "cat(mean.expand_as(x), x)"),
    )


def matrices(build: Builder, net: nn.Module, v: Tensor) -> Drawn:
    """Linear maps by other names, and constants."""
    C, last, a = v.shape[1], v.shape[-1], build.r.randrange(1, v.dim())
    left, right, row = (build.constant(net, *shape) for shape in ((3, v.shape[-2]), (last, 3), (last,)))
    channels, one = build.constant(net, 2, C), build.constant(net, 1)
    shape = [1] * a + [v.shape[a]] + [1] * (v.dim() - a - 1)
    gain = build.constant(net, *shape)
    return build.choice(
        (lambda x: left() @ x, "M @ x"),
        (lambda x: torch.einsum("...i,ij->...j", x, right()), "einsum('...i,ij->...j')"),
        (lambda x: torch.einsum("nc...,dc->nd...", x, channels()), "einsum('nc...,dc->nd...')"),
        (lambda x: torch.tensordot(x, right(), 1), "tensordot(1)"),
        (lambda x: x @ row(), "x @ vector"),
        (lambda x: torch.tensordot(x, channels(), dims=([1], [1])), "tensordot([1], [1])"),
        (lambda x: x / gain().exp(), "x / p"),
        (lambda x: x * gain().sigmoid(), "x * sigmoid(p)"),
        (lambda x: gain() - x, "p - x"),
        (lambda x: x.add(one()), "x + p"),
        (lambda x: torch.addcmul(x, x, gain(), value=0.5), "addcmul"),
        (lambda x: x.lerp(gain(), 0.25), "lerp"),
        (lambda x: torch.baddbmm(gain(), x, x.transpose(1, 2)), "baddbmm"),
        (lambda x: torch.bmm(x, x.mT), "bmm"),
        (lambda x: F.bilinear(x, x, channels()[:, :1, None].expand(2, last, last)), "bilinear"),
        (torch.positive, "+x"),
        (lambda x: F.cosine_similarity(x, gain(), a, 0.1), f"cosine_similarity({a}, 0.1)"),
        (lambda x: torch.cdist(x, right().t()[None]), "cdist"),
        (lambda x: F.pairwise_distance(x, x * 0.5), "pairwise_distance"),
        (lambda x: x.mul(2).div(3).sub(0.1), "2 x / 3 - 0.1"),
        (lambda x: F.scaled_dot_product_attention(x, x, x), "attention"),
        (lambda x: torch.maximum(x, gain()), "maximum(x, p)"),
        (lambda x: F.embedding(torch.arange(last), right()).sum() * x, "embedding * x"),
        (lambda x: x.addmm(x, right()), "addmm"),
        (lambda x: torch.where(torch.arange(last) > 0, x, 0.0), "where(constant)"),
        (lambda x: x.true_divide(2.0), "/ 2"),
        (lambda x: x.masked_fill(torch.arange(last) == 0, 0.5), "masked_fill(constant)"),
        (lambda x: torch.rsub(x, 1), "1 - x"),
        (lambda x: F.conv1d(x, channels().unsqueeze(-1)), "conv1d"),
        (lambda x: F.batch_norm(x, *(torch.ones(C).double(),) * 2), "batch_norm"),
    )


def joins(build: Builder, a: Tensor, b: Tensor) -> Drawn:
    """Two tensors, neither of them constant."""
    dim, value = build.r.randrange(1, a.dim()), build.choice(0.5, -1.0)
    return build.choice(
        (torch.maximum, "maximum"),
        (torch.min, "min(x, y)"),
        (lambda x, y: torch.where(x > y, x, y), "where(x > y, x, y)"),
        (lambda x, y: x / (1 + y.abs()), "x / (1 + |y|)"),
        (lambda x, y: torch.sub(x, y, alpha=value), f"sub(alpha={value})"),
        (lambda x, y: x.mul_(y), "x.mul_(y)"),
        (lambda x, y: x.sub_(y), "x.sub_(y)"),
        (lambda x, y: x.copy_(y) + x, "copy_"),
        (lambda x, y: torch.einsum("nc...,nc...->n...", x, y), "einsum(x, y)"),
        (lambda x, y: F.cosine_similarity(x, y, dim, 0.1), "cosine(x, y, 0.1)"),
        (lambda x, y: x * F.softmax(y, dim), "x * softmax(y)"),
        (lambda x, y: x * y.sigmoid(), "x * sigmoid(y)"),
        (lambda x, y: x + y.mean(dim, keepdim=True), "x + mean(y)"),
        (torch.hypot, "hypot"),
        (lambda x, y: torch.lerp(x, y, 0.25), "lerp(x, y)"),
        (lambda x, y: torch.addcmul(x, y, y, value=value), "addcmul"),
        (lambda x, y: torch.cat([x, y, x], dim), f"cat([x, y, x], {dim})"),
        (lambda x, y: torch.add(x, other=y), "add(other=)"),
        (lambda x, y: torch.stack((x, y)).sum(0), "stack.sum(0)"),
        (lambda x, y: torch.stack((x, y), -1).amax(-1), "stack.amax"),
    )


RARER = (functions, norms, places, matrices)
RARER_JOINS = joins
