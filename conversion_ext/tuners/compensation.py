"""Compensation of what each layer of spiking neurons loses."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.neurons import SignedEncoder
from conversion_ext.tuners.base import Tuner, register_tuner
from conversion_ext.tuners.walk import OutputStop, SiteStop, SynapseStop

__all__ = ["Compensation"]


@dataclass(frozen=True, kw_only=True)
class Compensation(Tuner):
    """Multiply by ``kappa`` >= 1 what every layer sends, for what its membranes keep (a reconstruction of Hu's).

    Use it to compare with Hu et al., behind neurons that start from potential 0.

    With ``v_init = 0`` a neuron ends with a charge of about 1/2 on average, so that a layer emits the share
    ``1 - 1 / (2 T mean rate)`` of its activation, and layers one behind the other lose exponentially. ``kappa=None``
    fits a factor per layer, the rates e of a site to the ANN's activations a: ``kappa = max(1, <a, e> / <e, e>)``,
    which lessens ``|kappa e - a|^2``. With ``v_init = 1/2`` hardly anything is lost on average and kappa is about 1.
    Changes ``SpikingSite.gain``: with folding all weights and shortcuts that read the site; no bias.

    Reference: Hu, Tang, Pan, TNNLS 2021 (compensation of propagation errors). A reconstruction: their equations were
    not found, their published code multiplies all weights and shortcuts of a network, not the biases, by one number.
    """

    kappa: float | None = None

    def __post_init__(self) -> None:
        require(
            self.kappa is None or (isinstance(self.kappa, Real) and 1 <= self.kappa < torch.inf),
            f"Compensation(kappa={self.kappa!r}): give a number >= 1, or None for one per layer from the data.",
        )

    def tune_site(self, stop: SiteStop) -> None:
        """Set the gain of one site."""
        if isinstance(stop.site.spec, SignedEncoder):
            return  # it follows its input from either side and loses nothing on average
        gain = stop.site.gain
        stop.site.gain = gain * (self._fitted(stop) if self.kappa is None else self.kappa)

    def objective(self, stop: SiteStop | SynapseStop | OutputStop) -> Tensor | None:
        """Return the squared errors of a site whose factor is fitted."""
        if self.kappa is not None or not isinstance(stop, SiteStop) or isinstance(stop.site.spec, SignedEncoder):
            return None

        def error(part: int) -> tuple[Tensor]:
            return ((stop.mean_emitted(part).double() - stop.target(part)).square().sum(),)

        return stop.exact_sum(error)[0]

    def _fitted(self, stop: SiteStop) -> float:
        def products(part: int) -> tuple[Tensor, Tensor]:
            emitted = stop.mean_emitted(part).double()
            return (emitted * stop.target(part)).sum(), emitted.square().sum()

        product, power = map(float, stop.exact_sum(products))
        return max(1.0, product / power) if power else 1.0


register_tuner("compensation", Compensation)
