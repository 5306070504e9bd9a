"""Weights calibrated by gradient descent, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from conversion_ext.errors import require
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.state import reset
from conversion_ext.tuners.base import Tuner, register_tuner
from conversion_ext.tuners.walk import OutputStop, SiteStop, SynapseStop
from conversion_ext.types import Steps

__all__ = ["WeightCalibration"]


@dataclass(frozen=True, kw_only=True)
class WeightCalibration(Tuner):
    """Descend with each layer's weights on ``E |rate(W x + b) - a|^2``: its neurons against the ANN.

    Use it to compare with Li et al.; WeightCompensation reaches more in less time.

    x is the mean over the T steps of what the tuned layers before really send, ``rate`` the output (in ANN units) of
    the layer's neurons for T steps of constant current, a the ANN's activation. The gradient passes the rounding and
    stops where the rate is clipped. A layer whose sum no ReLU site alone reads is fitted to the ANN's own value. Adam
    takes ``steps`` steps, ``lr`` relative to the root mean square of the weights and falling to 0 on a cosine, on one
    part of the data (some hundred samples, fewer for large T) each. A layer keeps the weights of the least error over
    all parts, looked at every ``steps / 5``; no error grows. Changes weights of layers that are called once. Several
    processes share the looking; the steps come one after the other, each in the process that has its part.

    Reference: Li, Deng, Dong, Gong, Gu, ICML 2021 (weight calibration; lr 1e-5 absolute, 5,000 steps).
    """

    steps: int = 100
    lr: float = 0.01

    def __post_init__(self) -> None:
        require(
            isinstance(self.steps, int) and not isinstance(self.steps, bool) and self.steps >= 1,
            f"WeightCalibration(steps={self.steps!r}): give an integer >= 1.",
        )
        require(
            isinstance(self.lr, Real) and 0 < self.lr < torch.inf,
            f"WeightCalibration(lr={self.lr!r}): give a positive number.",
        )

    def tune_synapse(self, stop: SynapseStop) -> None:
        """Calibrate one layer."""
        weight = _weight(stop)
        if weight is None:
            return
        scale = float(weight.detach().square().mean().sqrt())
        if not scale:
            return  # steps relative to weights that are all 0 lead nowhere
        best, least = weight.detach(), total_error(stop, weight.detach())
        moving = weight.detach().clone().requires_grad_()
        adam = torch.optim.Adam([moving])
        for step in range(self.steps):
            adam.param_groups[0]["lr"] = self.lr * scale * (1 + math.cos(math.pi * step / self.steps)) / 2
            turn = [part for part in stop.parts if stop.numbers[part] == step % stop.count]
            (moving.grad,) = (g.to(weight) for g in stop.exact_sum(lambda part: (gradient(stop, moving, part),), turn))
            adam.step()
            if (step + 1) % math.ceil(self.steps / 5) == 0 or step + 1 == self.steps:
                error = total_error(stop, moving.detach())
                if error < least:
                    best, least = moving.detach().clone(), error
        stop.module.weight = nn.Parameter(best, requires_grad=weight.requires_grad)

    def objective(self, stop: SiteStop | SynapseStop | OutputStop) -> Tensor | None:
        """Return the squared errors of a layer that is calibrated."""
        weight = _weight(stop) if isinstance(stop, SynapseStop) else None
        if weight is None or not isinstance(stop, SynapseStop):
            return None
        return torch.tensor(total_error(stop, weight.detach()), dtype=torch.float64)


def _weight(stop: SynapseStop) -> Any:
    """Return the weights to calibrate, or None: a first layer sees the input itself, a BatchNorm mixes no channels."""
    weight: Any = getattr(stop.module, "weight", None)
    return None if stop.shared or not stop.varies or weight is None or weight.dim() < 2 else weight


def squared_errors(stop: SynapseStop, weight: Tensor, part: int) -> Tensor:
    """Return the squared errors [N, ...] of a part of the data for these weights."""
    z = functional_call(stop.module, {"weight": weight}, (stop.mean_input(part),)) + stop.other_operands(part)
    if stop.site is None:
        return (z - stop.target(part)).square()
    return (rate(stop.site, z, stop.T) - stop.target(part).clamp_min(0)).square()


def gradient(stop: SynapseStop, weight: Tensor, part: int) -> Tensor:
    """Return the gradient of the mean squared error of a part of the data."""
    with torch.enable_grad():
        return torch.autograd.grad(squared_errors(stop, weight, part).mean(), weight)[0]


def total_error(stop: SynapseStop, weight: Tensor) -> float:
    """Return the sum of the squared errors of all data for these weights."""
    return float(stop.exact_sum(lambda part: (squared_errors(stop, weight, part).sum(dtype=torch.float64),))[0])


def rate(site: SpikingSite, z: Tensor, T: int) -> Tensor:
    """Return what the neurons of a site emit on average in T steps of current z, with the gradient of clipping."""
    clipped = site.emitted(site.copies * site.current(z).clamp(0, site.spec.levels))
    with torch.no_grad():
        reset(site)
        emitted = site(z.detach(), Steps(1, block=T))
        reset(site)
    return clipped + (emitted - clipped).detach()


register_tuner("weight_calibration", WeightCalibration)
