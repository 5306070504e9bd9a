"""Small networks that each hold one difficulty of conversion, and the torchvision families."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.families import FAMILIES

__all__ = ["FAMILIES", "SMALL"]


class Chain(nn.Sequential):
    """Conv, BatchNorm, ReLU, ReLU6, average pooling, dropout, linear."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.AvgPool2d(2),
            nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3),
            nn.Linear(32, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 5),
        )  # fmt: skip


class Functional(nn.Module):
    """Every activation and pool as a function or method, one ReLU shared, a view by batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.act = nn.ReLU()
        self.fc = nn.Linear(4 * 3 * 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.c1(x))
        x = F.avg_pool2d(self.act(self.c2(x)), 2)
        x = self.c3(x).clamp(min=0, max=2.0)
        x = F.dropout(x, training=self.training)
        return self.fc(torch.relu(x).view(x.size(0), -1))


class Residual(nn.Module):
    """Identity and projection shortcuts, max-pooling with padding, BatchNorm everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.a1, self.a2 = self._conv(8, 8), self._conv(8, 8)
        self.b1, self.b2 = self._conv(8, 12, 2), self._conv(12, 12)
        self.down = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(12, 5)

    @staticmethod
    def _conv(i: int, o: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu(x + self.a2(self.relu(self.a1(x))))
        x = self.relu(self.down(x) + self.b2(self.relu(self.b1(x))))
        return self.head(x.mean((2, 3)))


class Inception(nn.Module):
    """Branches with a pool, concatenated, and a max-pool over the concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one, self.three, self.pooled = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(6, 3, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        parts = [self.one(x), self.three(x), self.pooled(F.max_pool2d(x, 3, stride=1, padding=1))]
        x = F.max_pool2d(torch.cat([F.relu(part) for part in parts], 1), 2)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Dense(nn.Module):
    """Concatenation of everything before, BatchNorm before ReLU before convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(10), nn.BatchNorm2d(14)])
        self.convs = nn.ModuleList([nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(10, 4, 3, padding=1)])
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for norm, conv in zip(self.norms, self.convs):  # noqa: B905  traced
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(F.relu(self.norms[2](x)).mean([2, 3]))


class Shuffle(nn.Module):
    """Chunk, channel shuffle by view and transpose, one half passed on untouched."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(2):
            a, b = x.chunk(2, dim=1)
            x = torch.cat((a, F.relu(self.conv(b))), 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.head(x.flatten(2).mean(-1))


class Bottleneck(nn.Module):
    """MobileNetV2's block: ReLU6, depthwise convolution, linear bottleneck, sum without activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU6())
        self.block = nn.Sequential(
            nn.Conv2d(6, 12, 1), nn.BatchNorm2d(12), nn.ReLU6(),
            nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12), nn.ReLU6(),
            nn.Conv2d(12, 6, 1), nn.BatchNorm2d(6),
        )  # fmt: skip
        pool = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Sequential(nn.Conv2d(6, 8, 1), nn.ReLU6(), pool, nn.Flatten(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        return self.last(x + self.block(x))


class Tied(nn.Module):
    """One convolution used twice between different scales, and an image that meets a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        y = F.relu(self.conv(y) + x)
        return self.head((F.relu(self.conv(y)) - 0.5 * y).mean((2, 3)))


class Gated(nn.Module):
    """Squeeze-excitation, SiLU, LayerNorm, LeakyReLU, PReLU, GELU, softmax: everything that is not homogeneous."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.leaky = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 6, 3, padding=1), nn.LeakyReLU(0.2)
        self.squeeze, self.excite = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.norm, self.prelu = nn.GroupNorm(2, 6), nn.PReLU(6)
        self.layer_norm, self.head = nn.LayerNorm(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        x = self.leaky(self.mid(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = self.prelu(self.norm(x * gate))
        x = F.gelu(self.layer_norm(x.mean((2, 3))))
        return torch.softmax(self.head(F.relu(x)), dim=1)


class UNet(nn.Module):
    """Transposed convolution, nearest and bilinear upsampling, padding, a concatenated skip; two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.up, self.bn = nn.ConvTranspose2d(8, 6, 2, 2), nn.BatchNorm2d(6)
        self.merge, self.head, self.aux = nn.Conv2d(12, 6, 3), nn.Conv2d(6, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        skip = F.relu(self.down(x))
        deep = F.relu(self.deep(F.max_pool2d(skip, 2)))
        up = F.relu(self.bn(self.up(deep)))
        merged = F.relu(self.merge(F.pad(torch.cat([skip, up], 1), (1, 1, 1, 1))))
        aux = F.interpolate(self.aux(F.interpolate(deep, scale_factor=2)), size=x.shape[-2:], mode="bilinear")
        return {"out": self.head(merged), "aux": aux}


class Signal(nn.Sequential):
    """A one-dimensional network with transposed convolution."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv1d(2, 6, 5, padding=2), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2),
            nn.ConvTranspose1d(6, 4, 4, 2, 1, groups=2), nn.BatchNorm1d(4), nn.ReLU(), nn.AdaptiveAvgPool1d(3),
            nn.Flatten(), nn.Linear(12, 5),
        )  # fmt: skip


class Regression(nn.Sequential):
    """A regression network; outputs are values, negative ones too."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


IMAGE = (3, 12, 12)
SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (Chain, IMAGE), "functional": (Functional, (3, 8, 8)), "residual": (Residual, IMAGE),
    "inception": (Inception, IMAGE), "dense": (Dense, IMAGE), "shuffle": (Shuffle, IMAGE),
    "bottleneck": (Bottleneck, IMAGE), "tied": (Tied, IMAGE), "gated": (Gated, IMAGE), "unet": (UNet, IMAGE),
    "signal": (Signal, (2, 24)), "regression": (Regression, (7,)),
}  # fmt: skip
