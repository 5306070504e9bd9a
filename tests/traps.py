"""Small networks on which a careless rewrite changes the function, each with what must be gone and left afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.live import make_live

__all__ = ["TRAPS", "Doubled", "Net", "trap"]


class Net(nn.Module):
    """A network from its layers and a function ``(self, x) -> output``."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Doubled(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Standardized(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / self.weight.flatten(1).std(dim=1).reshape(-1, 1, 1, 1)
        return F.conv2d(input, weight, self.bias, padding=1)


def twice(net: Any, x: Tensor) -> Tensor:
    x = net.norm1(net.conv(x))
    return net.norm2(net.conv(F.relu(x)))


def in_place_alias(net: Any, x: Tensor) -> Tensor:
    identity = x = net.conv(x)
    out = net.relu(x)  # in place: identity changes too
    return out * 2 + identity


def unused_result(net: Any, x: Tensor) -> Tensor:
    x = net.conv(x)
    F.relu_(x)
    x.mul_(2)
    return x


def augmented(net: Any, x: Tensor) -> Tensor:
    x = net.conv(x)
    y = x
    x += 1
    x *= y
    return y + net.drop(y).relu_() - x


def counted(net: Any, x: Tensor) -> Tensor:
    x = net.conv(x)
    grown = size = x.size(2)
    grown += 2  # a number: size stays
    return F.interpolate(x, size=(grown, grown))[..., :size]


def chunks(net: Any, x: Tensor) -> Tensor:
    first, second = net.conv(x).chunk(2, dim=1)
    return torch.cat([first.relu_(), second.clamp_(min=-1, max=1)], 1)


def foreign_batch(net: Any, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    y = net.conv(x)
    y = y.view(batch, 2, y.size(1) // 2, height, width).transpose(1, 2).contiguous()
    y = y.view(batch, -1, height, width)
    return F.relu(y).reshape(batch, -1)


def methods(net: Any, x: Tensor) -> Tensor:
    x = torch.relu(net.conv(x)).clone()
    x = net.conv2(x).relu().clamp(max=3.0)
    x = F.dropout(F.max_pool2d(x, 2), 0.5, net.training)
    x = F.avg_pool2d(F.relu6(net.conv2(x)), 2, padding=1, count_include_pad=False)
    return net.head(torch.flatten(F.adaptive_avg_pool2d(x.sigmoid(), 1), 1).detach())


def functional(net: Any, x: Tensor) -> Tensor:
    conv, norm, up = net.conv, net.norm, net.up
    x = F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1, groups=1)
    x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    x = F.conv_transpose2d(F.relu(x), up.weight, None, 2, 1, 1)
    x = F.interpolate(F.group_norm(x, 2, net.group.weight, net.group.bias), scale_factor=2)
    return net.last(F.linear(x.mean((2, 3)), net.head.weight))


def merges(net: Any, x: Tensor) -> Tensor:
    x = F.relu(net.pool(net.conv(x)))
    y = net.relu(torch.cat([x, F.relu6(x), F.relu6(net.conv2(x)).clamp(0, 4)], 1))
    z = F.relu(F.pad(net.conv2(x)[:, :1].relu(), (1, 0))[..., ::2, :3].sum(1, True))
    return net.head(F.relu(F.avg_pool2d(y, 2)) + z)


def not_monotone_order(net: Any, x: Tensor) -> Tensor:
    pooled = net.pool(net.conv(x))
    return F.relu(pooled) + pooled  # the pool has another user: it must not move


def preactivation(net: Any, x: Tensor) -> Tensor:
    y = net.conv(F.relu(net.norm(x)))
    return net.norm2(y) + y  # y has two users: norm2 must not be folded


def global_pools(net: Any, x: Tensor) -> Tensor:
    x = F.relu(net.conv(x))
    means = x.mean([2, 3]) - x.mean((-1, -2), keepdim=True).flatten(1) * 2
    return net.head(means + net.pool(x).squeeze() * x.mean([1, 2, 3])[:, None])


def tied(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.second(F.relu(net.first(x)))) + net.first(x)


def constants(net: Any, x: Tensor) -> Tensor:
    return F.relu(net.conv(x)) * net.norm.weight.exp().reshape(1, -1, 1, 1)


def tie(net: Any) -> Any:
    net.second.weight = net.first.weight
    return net


def parametrized() -> nn.Module:
    utils = nn.utils
    layers = [
        utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)),
        utils.spectral_norm(nn.Conv2d(4, 4, 1)),
        prune.random_unstructured(nn.Conv2d(4, 4, 1), "weight", 0.5),
    ]
    with pytest.warns(FutureWarning, match="weight_norm"):
        layers.append(utils.weight_norm(nn.Conv2d(4, 4, 1)))
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.BatchNorm2d(4), nn.ReLU())])


def up(kind: int, **options: Any) -> nn.Module:
    convs = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
    norms = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
    return nn.Sequential(convs[kind](4, 6, 3, **options), norms[kind](6), nn.ReLU())


def shared_relu() -> nn.Module:
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu)


CONV: dict[str, Any] = {"kernel_size": 3, "padding": 1}
BN, RELU, POOL, SOFT = nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.Softmax
# name: (network, shape of a sample, module types that must be gone, module types that must be left)
TRAPS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any, Any]] = {
    "conv_called_twice": (
        lambda: Net(twice, conv=nn.Conv2d(3, 3, **CONV), norm1=BN(3), norm2=BN(3)), (3, 6, 6), BN, ()),
    "linear_norm": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), RELU(), nn.BatchNorm1d(7), nn.Linear(7, 3)),
        (5,), nn.BatchNorm1d, ()),
    "linear_norm_on_sequences": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), RELU(), nn.BatchNorm1d(4), nn.Linear(4, 4)),
        (4, 4), (), nn.BatchNorm1d),
    "up1d": (lambda: up(1, stride=2), (4, 7), nn.BatchNorm1d, ()),
    "up2d_grouped": (lambda: up(2, groups=2, bias=False), (4, 5, 4), BN, ()),
    "up3d": (lambda: up(3, padding=1, output_padding=0), (4, 3, 4, 3), nn.BatchNorm3d, ()),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3, groups=2), nn.BatchNorm1d(4), RELU()), (2, 9), nn.BatchNorm1d, ()),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), RELU()), (2, 4, 4, 4), nn.BatchNorm3d, ()),
    "norm_before_padded_conv": (lambda: nn.Sequential(BN(3), nn.Conv2d(3, 4, **CONV), RELU()), (3, 6, 6), (), BN),
    "norm_before_same_conv": (lambda: nn.Sequential(BN(3), nn.Conv2d(3, 4, 3, padding="same")), (3, 6, 6), (), BN),
    "norm_before_conv": (
        lambda: nn.Sequential(BN(4), nn.Conv2d(4, 6, 3, groups=2, bias=False), RELU()), (4, 6, 6), BN, ()),
    "norm_before_reflecting_conv": (
        lambda: nn.Sequential(BN(3), nn.Conv2d(3, 4, **CONV, padding_mode="reflect"), RELU()), (3, 6, 6), BN, ()),
    "norm_before_flat_linear": (
        lambda: nn.Sequential(nn.MaxPool2d(2), BN(3), nn.Flatten(), nn.Linear(12, 5)), (3, 4, 4), BN, ()),
    "padded": (lambda: nn.Sequential(nn.ZeroPad2d((2, 2, 1, 1)), nn.Conv2d(3, 4, **CONV), BN(4), RELU(),
                                     nn.ConstantPad2d(1, 0), nn.Conv2d(4, 4, 3, padding="valid")), (3, 6, 6),
               (nn.ZeroPad2d, nn.ConstantPad2d), ()),
    "norm_before_padding": (lambda: nn.Sequential(BN(3), nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3), RELU()), (3, 6, 6),
                            nn.ZeroPad2d, BN),
    "norm_chain": (lambda: nn.Sequential(BN(3), BN(3), nn.Conv2d(3, 4, 3), BN(4), BN(4)), (3, 6, 6), BN, ()),
    "norm_without_affine": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), BN(4, affine=False), nn.Dropout(), RELU()), (3, 6, 6),
        (BN, nn.Dropout), ()),
    "norm_behind_dropout": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Dropout2d(), nn.Identity(), BN(4)), (3, 6, 6),
        (BN, nn.Dropout2d, nn.Identity), ()),
    "preactivation": (
        lambda: Net(preactivation, norm=BN(3), conv=nn.Conv2d(3, 3, **CONV), norm2=BN(3)), (3, 6, 6), (), BN),
    "parametrized": (parametrized, (3, 8, 8), BN, ()),
    "tied": (
        lambda: tie(Net(tied, first=nn.Linear(5, 5), second=nn.Linear(5, 5), norm=nn.BatchNorm1d(5))), (5,),
        nn.BatchNorm1d, ()),
    "methods": (
        lambda: Net(methods, conv=nn.Conv2d(3, 4, 3), conv2=nn.Conv2d(4, 4, **CONV), head=nn.Linear(4, 3)),
        (3, 12, 12), nn.ReLU6,
        (nn.Flatten, nn.Sigmoid, nn.Hardtanh)),
    "functional": (
        lambda: Net(functional, conv=nn.Conv2d(3, 4, 3), norm=BN(4), up=nn.ConvTranspose2d(4, 6, 3),
                    group=nn.GroupNorm(2, 6), head=nn.Linear(6, 3), last=nn.Linear(3, 3)), (3, 8, 8), BN,
        (nn.ConvTranspose2d, nn.Upsample, nn.GroupNorm, nn.AdaptiveAvgPool2d, nn.Linear)),
    "standardized_weights": (lambda: nn.Sequential(Standardized(3, 4, 3), BN(4), RELU()), (3, 6, 6), BN, ()),
    "constants": (lambda: Net(constants, conv=nn.Conv2d(3, 4, 3), norm=BN(4)), (3, 6, 6), (), ()),
    "shared_relu": (shared_relu, (3, 8, 8), (), ()),
    "in_place_alias": (
        lambda: Net(in_place_alias, conv=nn.Conv2d(3, 4, 3), relu=RELU(inplace=True)), (3, 6, 6), (), ()),
    "unused_result": (lambda: Net(unused_result, conv=nn.Conv2d(3, 4, 3)), (3, 6, 6), (), RELU),
    "augmented": (lambda: Net(augmented, conv=nn.Conv2d(3, 4, 3), drop=nn.Dropout()), (3, 6, 6), nn.Dropout, RELU),
    "counted": (lambda: Net(counted, conv=nn.Conv2d(3, 4, 3)), (3, 6, 6), (), ()),
    "means3d": (
        lambda: Net(lambda n, x: n.conv(x).mean((3, 4)) + n.conv(x).mean((2, 3, 4))[..., None],
                    conv=nn.Conv3d(2, 3, 2)),
        (2, 4, 4, 4), (), (nn.AdaptiveAvgPool3d, nn.Flatten)),
    "chunks": (lambda: Net(chunks, conv=nn.Conv2d(3, 4, 3)), (3, 6, 6), (), (RELU, nn.Hardtanh)),
    "foreign_batch": (lambda: Net(foreign_batch, conv=nn.Conv2d(3, 4, **CONV)), (3, 6, 6), (), (RELU, nn.Flatten)),
    "merges": (
        lambda: Net(merges, conv=nn.Conv2d(3, 4, **CONV), conv2=nn.Conv2d(4, 4, **CONV), pool=POOL(2), relu=RELU(),
                    head=nn.Conv2d(12, 4, 1)), (3, 12, 12), nn.ReLU6, ()),
    "pool_with_two_users": (
        lambda: Net(not_monotone_order, conv=nn.Conv2d(3, 4, 3), pool=POOL(2)), (3, 8, 8), (), ()),
    "clipped_pool": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), POOL(3, 1, 1), nn.ReLU6(), nn.Hardtanh(0, 1), RELU()), (3, 8, 8),
        (nn.ReLU6, RELU), ()),
    "global_pools": (
        lambda: Net(global_pools, conv=nn.Conv2d(3, 4, 3), pool=nn.AdaptiveMaxPool2d(1), head=nn.Linear(4, 3)),
        (3, 8, 8), (),
        nn.AdaptiveAvgPool2d),
    "own_subclass": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), RELU(), Doubled(), SOFT(1)), (3, 6, 6), Doubled, ()),
    "attention": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)),
        (5, 4), (), ()),
}  # fmt: skip


def trap(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    build, shape, _, _ = TRAPS[name]
    torch.manual_seed(1)
    return make_live(build().double(), *shape), shape
