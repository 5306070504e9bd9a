"""Bias correction: the mean output of every channel made that of the ANN."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.tuners.base import Tuner, register_tuner
from conversion_ext.tuners.walk import OutputStop, SiteStop, SynapseStop

__all__ = ["BiasCorrection"]


@dataclass(frozen=True, kw_only=True)
class BiasCorrection(Tuner):
    """Add to the current of each channel what its mean output lacks: ``bias_c += mean(a_c) - mean(lambda_c rate_c)``.

    Use it when only biases may change, or there is little data: it is the cheapest correction.

    a is the ANN's activation, the means are over samples, positions and the T steps; the site's input is what the
    corrected sites before it really emit. The correction is repeated ``iterations`` times, and a channel keeps the
    bias that brought its means closest.

    ``per_step`` corrects each of the T steps by itself, ``bias_c[t] += mean(a_c) - mean(lambda_c s_c[t])``, so that the
    cumulative mean output follows ``t mean(a_c)``; a channel keeps the biases of the least root mean square distance
    from that. Steps of one block have one bias; steps beyond T get the mean.

    Changes ``SpikingSite.bias``, nothing else.

    Reference: Li, Deng, Dong, Gong, Gu, ICML 2021 ("light" calibration; one iteration, kept whatever it does);
    Wu, Bojkovic, Gu et al., ECCV 2024 (per step).
    """

    iterations: int = 2
    per_step: bool = False

    def __post_init__(self) -> None:
        require(self.iterations >= 1, f"BiasCorrection(iterations={self.iterations!r}): give an integer >= 1.")
        require(isinstance(self.per_step, bool), f"BiasCorrection(per_step={self.per_step!r}): use True or False.")

    @property
    def counts_steps(self) -> bool:
        """Whether biases belong to single steps."""
        return self.per_step

    def tune_site(self, stop: SiteStop) -> None:
        """Correct the bias of one site."""
        site = stop.site
        target = _target_sums(stop)
        best, least = site.bias, torch.tensor(torch.inf)
        for _ in range(self.iterations + 1):
            gaps = self._gaps(stop, target)
            distance = _distance(gaps)
            best = torch.where(distance < least, site.bias, best).to(site.bias.dtype)
            least = torch.minimum(distance, least)
            change = gaps.repeat_interleave(stop.T // len(gaps), 0) if self.per_step else gaps[0]
            site.bias = site.bias + change.to(site.bias.dtype)
        site.bias = best

    def objective(self, stop: SiteStop | SynapseStop | OutputStop) -> Tensor | None:
        """Return how far the mean outputs of each channel of a site are from those of the ANN."""
        return _distance(self._gaps(stop, _target_sums(stop))) if isinstance(stop, SiteStop) else None

    def _gaps(self, stop: SiteStop, target: tuple[Tensor, Tensor]) -> Tensor:
        """Return what the mean output of each channel lacks, in each step (or block) or on average: [S, C]."""

        def sums(part: int) -> tuple[Tensor]:
            emitted = stop.emitted(part)
            emitted = emitted if self.per_step else emitted.mean(0, keepdim=True)
            return (torch.stack([channel_sums(step, stop.site.dim)[0] for step in emitted]),)

        total, count = target
        return (total - stop.exact_sum(sums)[0]) / count


def _target_sums(stop: SiteStop) -> tuple[Tensor, Tensor]:
    """Return the sum of the ANN's activations of each channel, and their number."""
    total, count = stop.exact_sum(lambda part: channel_sums(stop.target(part), stop.site.dim))
    return total, count


def _distance(gaps: Tensor) -> Tensor:
    return gaps.cumsum(0).square().mean(0).sqrt()


def channel_sums(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the sum of x over everything but ``dim``, and how many were added: [C] float64 each."""
    rows = x.movedim(dim, 0).flatten(1)
    count = torch.full((len(rows),), rows.shape[1], dtype=torch.float64, device=x.device)
    return rows.sum(1, dtype=torch.float64), count


register_tuner("bias_correction", BiasCorrection)
