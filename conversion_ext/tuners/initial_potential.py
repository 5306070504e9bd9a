"""Initial potentials fitted so that mean outputs are those of the ANN."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.neurons import SignedEncoder
from conversion_ext.tuners.base import Tuner, register_tuner
from conversion_ext.tuners.walk import OutputStop, SiteStop, SynapseStop
from conversion_ext.types import PerChannel

__all__ = ["InitialPotential", "PerNeuron"]

# So many samples, and so many activations of each channel, tell its mean as well as all.
SAMPLES, VALUES = 192, 1 << 14


@dataclass(frozen=True)
class PerNeuron:
    """One value per neuron, activation [N, C, H, W] -> [C, H, W]: inputs then have the size of the calibration data."""


@dataclass(frozen=True, kw_only=True)
class InitialPotential(Tuner):
    """Start each neuron with the charge its output lacks in T steps: ``v_init += T mean(a - lambda rate) / lambda``.

    Use it behind any other tuner: it costs nothing while simulating and fades with more steps.

    a is the ANN's activation; the site's input is what the tuned sites before it really emit. The mean is over samples,
    steps and, with ``PerChannel()``, positions; where a random part of the samples has positions enough, over these.
    ``PerNeuron()`` fixes the size of the input, and another one raises ValueError when it is run. A value that does not
    bring its means closer is taken back. Unlike a bias, the charge acts once, so it fades as 1 / T' in runs of other
    lengths T'. Changes ``SpikingSite.v_init``, nothing else, but not that of encoders of signed values.

    Reference: Li, Deng, Dong, Gong, Gu, ICML 2021 (potential initialization, per neuron).
    """

    granularity: PerChannel | PerNeuron = field(default=PerChannel())

    def __post_init__(self) -> None:
        require(
            isinstance(self.granularity, PerChannel | PerNeuron) and self.granularity in (PerChannel(), PerNeuron()),
            f"InitialPotential(granularity={self.granularity!r}): use PerChannel() or PerNeuron(); "
            "channels are those of the site.",
        )

    def tune_site(self, stop: SiteStop) -> None:
        """Fit the initial potentials of one site."""
        site, before = stop.site, stop.site.v_init
        if isinstance(site.spec, SignedEncoder):
            return  # its backlog is bounded because it starts within half a threshold
        gap = self._gap(stop)
        site.v_init = before + (stop.T * gap / site.view(gap.dim())).to(before.dtype)
        site.v_init = torch.where(self._gap(stop).abs() < gap.abs(), site.v_init, before)

    def objective(self, stop: SiteStop | SynapseStop | OutputStop) -> Tensor | None:
        """Return how far the mean outputs of a site are from those of the ANN."""
        if not isinstance(stop, SiteStop) or isinstance(stop.site.spec, SignedEncoder):
            return None
        return self._gap(stop).abs()

    def _gap(self, stop: SiteStop) -> Tensor:
        """Return the mean of what the output lacks, shaped to broadcast over [N, ...]."""
        whole = isinstance(self.granularity, PerNeuron)

        def lacking(part: int) -> tuple[Tensor, Tensor]:
            lacks = stop.target(part) - stop.mean_emitted(part)
            dims = [d for d in range(lacks.dim()) if d == 0 or not (whole or d == stop.site.dim % lacks.dim())]
            sums = lacks.sum(dims, keepdim=True).double()
            return sums, torch.tensor(lacks.numel() // sums.numel(), device=sums.device)

        sums, count = stop.exact_sum(lacking, stop.parts if whole else stop.sample(SAMPLES, VALUES))
        return sums / count


register_tuner("initial_potential", InitialPotential)
