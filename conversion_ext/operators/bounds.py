"""Bounds of values, from bounds of inputs and from weights: interval arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Interval", "hull", "product"]


@dataclass(frozen=True)
class Interval:
    """The least and the largest value, each shaped like a unit: [1, C, 1, ...] with size 1 where it does not change."""

    low: Tensor
    high: Tensor

    def with_zero(self) -> Interval:
        """Return the bounds where zeros are among the values, as padding puts them."""
        return Interval(self.low.clamp_max(0), self.high.clamp_min(0))

    def along(self, dim: int) -> Interval:
        """Return bounds that hold for every entry of the dimensions other than ``dim``."""
        others = [d for d in range(self.low.dim()) if d != dim % self.low.dim()]
        return Interval(self.low.amin(others, keepdim=True), self.high.amax(others, keepdim=True))


def hull(x: Interval, dims: tuple[int, ...]) -> Interval:
    """Return bounds that hold for every entry of the dimensions ``dims``."""
    return Interval(x.low.amin(dims, keepdim=True), x.high.amax(dims, keepdim=True)) if dims else x


def product(weight: Tensor, bias: Tensor | None, groups: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounds [O] of ``weight`` [O, I / groups, K] times values between low and high [I], plus ``bias``."""
    weight = weight.detach().cpu().double().unflatten(0, (groups, -1))
    up, down = weight.clamp_min(0).sum(3), weight.clamp_max(0).sum(3)  # [groups, O / groups, I / groups]
    low, high = low.reshape(groups, -1, 1), high.reshape(groups, -1, 1)
    shift = torch.zeros((), dtype=torch.float64) if bias is None else bias.detach().cpu().double()
    return (up @ low + down @ high).flatten() + shift, (up @ high + down @ low).flatten() + shift
