"""Two small vision transformers of torchvision for 28x28 images in one channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

__all__ = ["TRANSFORMERS", "swin", "vit"]


def vit() -> nn.Module:
    """Return a ViT of 3 blocks: 16 patches of 7x7 and a class token, 64 features, 4 heads (Dosovitskiy 2021)."""
    network = VisionTransformer(28, 7, 3, 4, 64, 128, num_classes=10)
    network.conv_proj = nn.Conv2d(1, 64, 7, 7)
    return network


def swin() -> nn.Module:
    """Return a Swin of 4 blocks: patches of 4x4, windows of 4x4, shifted in every second block (Liu et al. 2021)."""
    network: Any = SwinTransformer(
        [4, 4], 48, [2, 2], [3, 6], [4, 4], mlp_ratio=2.0, stochastic_depth_prob=0.0, num_classes=10
    )
    network.features[0][0] = nn.Conv2d(1, 48, 4, 4)
    return network


TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {"vit": vit, "swin": swin}
