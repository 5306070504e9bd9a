"""Inputs beyond what a network was calibrated for: how much of its current each site cannot say, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conversion_ext.data.batches import Forward, batches, call_inputs
from conversion_ext.data.distributed import gathered
from conversion_ext.errors import CalibrationError, require
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.spiking_network import Root
from conversion_ext.network.state import reset
from conversion_ext.neurons import IF, SignedEncoder
from conversion_ext.simulation.simulation import simulate
from conversion_ext.types import Reset

__all__ = ["Limits", "clipped_share", "limits"]


@dataclass(frozen=True)
class Limits:
    """What calibration samples lose at most: ``shares`` {site: clipped share}, at ``T`` steps."""

    T: int
    shares: dict[str, float]

    def outside(self, snn: Root, data: Any, *, forward: Forward | None = None) -> Tensor:
        """Return which samples [N] lose more than that at one site or another."""
        found = clipped_share(snn, data, self.T, forward=forward)
        return torch.stack([share > self.shares[key] for key, share in found.items()]).any(0)


def clipped_share(snn: Root, data: Any, T: int, *, forward: Forward | None = None) -> dict[str, Tensor]:
    """Return {site: the part [N] of its current that a sample's neurons could not say in T steps}.

    A neuron with soft reset says at most one spike per step; what comes beyond stays in its membrane. With D the
    potential above the threshold after T steps (of a signed site, beyond either) and N the spikes sent, the share is
    ``sum D / (sum D + sum N)`` over the neurons of the site: 0 within the range, ``1 - 1 / z`` for a constant current z
    > 1 and many steps. Reads neither labels nor the ANN. ``data`` is read as ``convert`` reads it.

    Raises ValueError where neurons are not IF with soft reset, or a tuner steps them.
    """
    require(
        isinstance(snn, Root), f"snn is a {type(snn).__name__}; pass what conversion_ext.convert returned.", TypeError
    )
    for site in snn.sites().values():
        keeps = isinstance(site.spec, SignedEncoder) or (type(site.spec) is IF and site.spec.reset is Reset.SUBTRACT)
        require(
            keeps and site.stepping.plain,
            f"{site.key} has {site.spec} stepped by {type(site.stepping).__name__}; only IF neurons with soft reset, "
            "stepped plainly, keep what they could not say: convert with such a recipe.",
        )
    shares: dict[str, list[Tensor]] = {}
    for batch in batches(data, "data"):
        run = simulate(snn, call_inputs(batch, forward), T, at=(T,))
        for key, site in snn.sites().items():
            debt, said = _debt(site), T * run.firing_rate[key].flatten(1).sum(1).double()
            shares.setdefault(key, []).append(torch.where(debt > 0, debt / (debt + said), 0.0))
    reset(snn)
    require(bool(shares), "The data holds no batch, or the network no spiking site.", CalibrationError)
    return {key: torch.cat(parts) for key, parts in shares.items()}


def limits(snn: Root, data: Any, T: int, *, quantile: float = 0.99, forward: Forward | None = None) -> Limits:
    """Return the clipped share of each site that a ``quantile`` of the samples, those of calibration, do not exceed.

    There, too, a little is clipped. ``limits(snn, calibration, T).outside(snn, x)`` tells which inputs lose more: they
    lie outside the calibrated range, though what is decided on them may be right. Of several processes each gives its
    part of ``data``.
    """
    require(0 < quantile <= 1, f"quantile={quantile!r}: give a number in (0, 1].")
    found = clipped_share(snn, data, T, forward=forward)
    return Limits(T, {key: float(torch.cat(gathered(share)).quantile(quantile)) for key, share in found.items()})


def _debt(site: SpikingSite) -> Tensor:
    """Return what the neurons of a site hold beyond their thresholds, summed by sample [N]."""
    v = site.potential
    assert v is not None
    v = v.abs() if isinstance(site.spec, SignedEncoder) else v
    return (v - 1).clamp_min(0).flatten(1).sum(1, dtype=torch.float64)
