"""The networks of the benchmarks, for 28x28 images in one channel: four with ReLU, three as papers ask for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from conversion_ext.nn import QCFS, SoftLIF

__all__ = ["NETWORKS", "VGG", "AverageVGG", "InceptionNet", "MobileNet", "ResNet20"]


def conv(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return convolution and BatchNorm."""
    return [nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]


class VGG(nn.Sequential):
    """Six convolutions, three max-pools, two linear layers."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        channels = 1
        for width in (16, 32, 64):
            for o in (width, width):
                layers += [*conv(channels, o), nn.ReLU()]
                channels = o
            layers.append(nn.MaxPool2d(2))
        super().__init__(
            *layers,
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * 9, 128),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(128, 10),
        )


class Block(nn.Module):
    """Two convolutions with a shortcut, identity or projection."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv(i, o, 3, stride), nn.ReLU(), *conv(o, o))
        self.shortcut = nn.Sequential(*conv(i, o, 1, stride)) if stride > 1 or i != o else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(body(x) + shortcut(x))."""
        return self.relu(self.body(x) + self.shortcut(x))


class ResNet20(nn.Sequential):
    """A stem with an overlapping max-pool, three stages of three blocks (He et al., 2016), 16, 32, 64 channels."""

    def __init__(self) -> None:
        blocks, channels = [], 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            for index in range(3):
                blocks.append(Block(channels, width, stride if index == 0 else 1))
                channels = width
        super().__init__(
            *conv(1, 16),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )


class Mixed(nn.Module):
    """Inception's block: 1x1, 3x3, 5x5 (as two 3x3) and pooled branches, concatenated."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        q = o // 4
        self.one = nn.Sequential(*conv(i, q, 1), nn.ReLU())
        self.three = nn.Sequential(*conv(i, q, 1), nn.ReLU(), *conv(q, q), nn.ReLU())
        self.five = nn.Sequential(*conv(i, q, 1), nn.ReLU(), *conv(q, q), nn.ReLU(), *conv(q, q), nn.ReLU())
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), *conv(i, q, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches side by side."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class InceptionNet(nn.Sequential):
    """Stem, four mixed blocks, overlapping max-pools between them."""

    def __init__(self) -> None:
        super().__init__(
            *conv(1, 24), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Mixed(24, 64), Mixed(64, 64), nn.MaxPool2d(3, 2, 1),
            Mixed(64, 96), Mixed(96, 96), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10),
        )  # fmt: skip


class Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise, linear bottleneck."""

    def __init__(self, i: int, o: int, stride: int, expand: int = 4) -> None:
        super().__init__()
        h = i * expand
        self.body = nn.Sequential(
            *conv(i, h, 1), nn.ReLU6(), *conv(h, h, 3, stride, groups=h), nn.ReLU6(), *conv(h, o, 1)
        )
        self.identity = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        """Return the bottleneck, with a shortcut where shapes agree."""
        return x + self.body(x) if self.identity else self.body(x)


class MobileNet(nn.Sequential):
    """MobileNetV2-like: ReLU6, depthwise convolutions, linear bottlenecks."""

    def __init__(self) -> None:
        super().__init__(
            *conv(1, 16, 3, 2), nn.ReLU6(), Inverted(16, 16, 1), Inverted(16, 24, 2), Inverted(24, 24, 1),
            Inverted(24, 24, 1), Inverted(24, 40, 2), Inverted(40, 40, 1), *conv(40, 160, 1), nn.ReLU6(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(160, 10),
        )  # fmt: skip


class AverageVGG(nn.Sequential):
    """VGG with average pooling and the activation given; ``plain``: without biases and BatchNorm, one block less."""

    def __init__(self, activation: Callable[[], nn.Module] = nn.ReLU, plain: bool = False) -> None:
        layers: list[nn.Module] = []
        channels = 1
        for width in (16, 32, 64):
            for o in (width,) if plain else (width, width):
                layers += [*conv(channels, o)[: 1 if plain else 2], activation()]
                channels = o
            layers.append(nn.AvgPool2d(2))
        super().__init__(
            *layers, nn.Flatten(), nn.Linear(64 * 9, 128, bias=not plain), activation(), nn.Dropout(0.3),
            nn.Linear(128, 10, bias=not plain),
        )  # fmt: skip
        if plain:
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(layer.weight)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg": VGG, "resnet20": ResNet20, "inception": InceptionNet, "mobilenet": MobileNet,
    "vgg_qcfs": partial(AverageVGG, partial(QCFS, levels=4, threshold=4.0)),
    "vgg_softlif": partial(AverageVGG, partial(SoftLIF, noise=10.0)), "vgg_plain": partial(AverageVGG, plain=True),
}  # fmt: skip
