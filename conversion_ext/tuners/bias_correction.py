"""Bias correction: the mean output of every channel made that of the ANN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.tuners.base import Tuner, register_tuner

if TYPE_CHECKING:
    from conversion_ext.tuners.walk import SiteStop

__all__ = ["BiasCorrection"]


@dataclass(frozen=True, kw_only=True)
class BiasCorrection(Tuner):
    """Add to the current of each channel what its mean output lacks: ``bias_c += mean(a_c) - mean(lambda_c rate_c)``.

    a is the ANN's activation, the means are over samples, positions and the T steps; the site's input is what the
    corrected sites before it really emit. The correction is repeated ``iterations`` times, and a channel keeps the
    bias that brought its means closest. Changes ``SpikingSite.bias``, nothing else.

    Reference: Li, Deng, Dong, Gong, Gu, ICML 2021 ("light" calibration; one iteration, kept whatever it does).
    """

    iterations: int = 2

    def __post_init__(self) -> None:
        require(self.iterations >= 1, f"BiasCorrection(iterations={self.iterations!r}): give an integer >= 1.")

    def tune_site(self, stop: SiteStop) -> None:
        """Correct the bias of one site."""
        site = stop.site
        wanted = torch.stack([channel_sums(stop.wanted(part), site.dim) for part in stop.parts]).sum(0)
        best, least = site.bias, torch.tensor(torch.inf)
        for _ in range(self.iterations + 1):
            sums = torch.stack([channel_sums(stop.emitted(part).mean(0), site.dim) for part in stop.parts]).sum(0)
            gap = (wanted - sums)[0] / wanted[1]
            best = torch.where(gap.abs() < least, site.bias, best).to(site.bias.dtype)
            least = torch.minimum(gap.abs(), least)
            site.bias = site.bias + gap.to(site.bias.dtype)
        site.bias = best


def channel_sums(x: Tensor, dim: int) -> Tensor:
    """Return the sum of x over everything but ``dim``, and how many were added: [2, C] float64."""
    rows = x.movedim(dim, 0).flatten(1)
    count = torch.full((len(rows),), rows.shape[1], dtype=torch.float64, device=x.device)
    return torch.stack((rows.sum(1, dtype=torch.float64), count))


register_tuner("bias_correction", BiasCorrection)
