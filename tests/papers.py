"""Networks that the recipes of the literature take, and what their tests share."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.nn import QCFS, SoftLIF

__all__ = ["bias_free", "converted", "deep", "error", "fit", "images", "network_for"]


def bias_free(activation=nn.ReLU) -> nn.Sequential:
    """A network that every recipe takes, given the activation that it asks for."""
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), activation(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3, bias=False), activation(),
        nn.Flatten(), nn.Linear(8, 5, bias=False),
    )  # fmt: skip
    for layer in (network[0], network[3]):
        nn.init.kaiming_normal_(layer.get_parameter("weight"))
    return network


def network_for(name: str) -> nn.Module:
    """The network above as the recipe asks for it."""
    if name == "hunsberger2016":
        return bias_free(SoftLIF)
    if name in ("bu2022", "hao2023", "hao2023_cos"):
        return bias_free(partial(QCFS, 4, 0.5))
    return cx.recipes.adapt_cao2015(bias_free()) if name == "cao2015_adapted" else bias_free()


@torch.enable_grad()
def fit(ann: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    """Train in place and leave in evaluation mode."""
    optimizer = torch.optim.SGD(ann.train().parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(ann(x[index]), y[index]).backward()
            optimizer.step()
    ann.eval()


def deep(layers: int) -> tuple[nn.Sequential, Tensor]:
    """A chain of linear layers and ReLUs, and inputs in [0, 1]."""
    ann = nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(40, 40, bias=False), nn.ReLU())]).double()
    for layer in ann[::2]:
        nn.init.kaiming_normal_(layer.get_parameter("weight"))
    return ann, torch.rand(60, 40).double()


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def converted(ann: nn.Module, x: Tensor, recipe: str | cx.Recipe, **options):
    return cx.convert(ann, x, recipe=recipe, progress=False, **{"backend": "reference", "T": 8, **options})


def error(found: Tensor, wanted: Tensor) -> float:
    """Return the relative error of all outputs together."""
    return float((found - wanted).norm() / wanted.norm())
