"""The CIFAR ResNets of He et al., as published state dicts fit them, for the demonstration and the benchmarks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from conversion_ext.errors import require

__all__ = ["ResNet", "resnet_of", "weights_of", "with_convolutions"]


class Block(nn.Module):
    """Two convolutions and a shortcut without weights: every second pixel, absent channels are 0 (option A)."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        self.stride, self.margin = stride, (o - i) // 2
        self.shortcut: nn.Module | None = None
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()  # modules, since SpikingJelly finds no others

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(body(x) + shortcut(x))."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride > 1 or self.margin:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.margin, self.margin))
        return self.relu2(out + x)


class ResNet(nn.Module):
    """The CIFAR ResNet of He et al. (CVPR 2016): a stem and three stages of ``blocks`` blocks, 16, 32, 64 channels."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        stages = [
            nn.Sequential(*(Block(i if n == 0 else o, o, stride if n == 0 else 1) for n in range(blocks)))
            for i, o, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        ]
        self.layer1, self.layer2, self.layer3 = stages
        self.relu, self.pool, self.linear = nn.ReLU(), nn.AvgPool2d(8), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, 10]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


def with_convolutions(network: nn.Module) -> nn.Module:
    """Return a copy whose shortcuts are convolutions of weights 0 and 1: the same values, for SpikingJelly's tracer."""
    network = copy.deepcopy(network)
    for block in network.modules():
        if isinstance(block, Block) and block.margin:
            o, i = block.conv2.out_channels, block.conv1.in_channels
            block.shortcut = nn.Conv2d(i, o, 1, block.stride, bias=False)
            block.shortcut.weight.data = torch.eye(o)[block.margin : block.margin + i].T[:, :, None, None].clone()
    return network


def weights_of(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file (.pt, .pth or .safetensors), also one under the key that training scripts use.

    Raises:
        ValueError: where there is no such file, or it holds something else.
    """
    require(path.is_file(), f"--weights {path}: there is no such file.")
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # readers raise whatever comes up in a damaged or foreign file
        raise ValueError(f"--weights {path} cannot be read as a state dict: {str(error).splitlines()[0]}") from error
    state = next((state[key] for key in ("state_dict", "model") if isinstance(state, dict) and key in state), state)
    require(
        isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values()),
        f"--weights {path} holds a {type(state).__name__}; save model.state_dict().",
    )
    return state


def resnet_of(state: Mapping[str, Tensor]) -> nn.Module:
    """Return the CIFAR ResNet that a state dict belongs to, its shortcuts as convolutions, with these weights.

    Raises:
        ValueError: where it is none of a CIFAR ResNet.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    blocks = len({key.split(".")[1] for key in state if key.startswith("layer1.")})
    network = ResNet(max(blocks, 1))
    missing = [
        key for key, value in network.state_dict().items() if key not in state or state[key].shape != value.shape
    ]
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    require(
        not missing and len(state) <= len(network.state_dict()),
        f"These weights are not those of a CIFAR ResNet of He et al. (first difference: {[*missing, *state][0]}); "
        "convert other networks with: conversion-ext convert module:factory --weights FILE",
    )
    network.load_state_dict(dict(state), strict=False)
    return with_convolutions(network).eval()
