"""Inputs beyond what a network was calibrated for: the part of its current that each site cannot emit, per sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext.data.distributed import gathered
from conversion_ext.data.sequences import Layout
from conversion_ext.errors import CalibrationError, require
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.network.state import reset
from conversion_ext.neurons import IF, SignedEncoder
from conversion_ext.simulation.run import Runner
from conversion_ext.simulation.samples import Samples, require_network, require_steps
from conversion_ext.tables import Report, Sheet
from conversion_ext.types import Reset

__all__ = ["Limits", "clipped_share", "limits"]


@dataclass(frozen=True, repr=False)
class Limits(Report):
    """What calibration samples lose at most: ``shares`` {site: clipped share}, at ``T`` steps."""

    T: int
    shares: dict[str, float]

    def outside(self, snn: SpikingNetwork, data: Any, *, sequence: Layout = None) -> Tensor:
        """Return which samples [N] lose more than that at one site or another."""
        shares = clipped_share(snn, data, self.T, sequence=sequence)
        return torch.stack([share > self.shares[key] for key, share in shares.items()]).any(0)

    def sheet(self) -> Sheet:
        """Return one row per site."""
        rows = [(key, f"{share:.4f}") for key, share in self.shares.items()]
        return Sheet(("site", "clipped share"), rows, f"T={self.T}")


def clipped_share(
    snn: SpikingNetwork, data: Any, T: int, *, ann: nn.Module | None = None, sequence: Layout = None
) -> dict[str, Tensor]:
    """Return, for each site, the fraction [N] of the input charge that saturated neurons could not emit in T steps.

    A neuron with soft reset emits at most one spike per step; the excess stays in its membrane. With D the
    potential above the threshold after T steps (of a signed site, beyond either) and N the spikes sent, the share is
    ``sum D / (sum D + sum N)`` over the neurons of the site: 0 within the range, ``1 - 1 / z`` for a constant current z
    > 1 and many steps. Every frame of a sequence is a sample.

    Args:
        snn: a converted network.
        data: a tensor [N, ...] or a re-iterable of batches; targets are not used.
        T: the number of time steps.
        ann: not used; all analyses are called alike.
        sequence: as for :func:`evaluate`.

    Returns:
        {site: shares [N]}, each in [0, 1].

    Raises:
        ValueError: where neurons are not IF with soft reset, or a tuner steps them.
    """
    require_network(snn)
    for site in snn.sites().values():
        keeps = isinstance(site.spec, SignedEncoder) or (type(site.spec) is IF and site.spec.reset is Reset.SUBTRACT)
        require(
            keeps and site.stepping.plain,
            f"{site.key} has {site.spec} stepped by {type(site.stepping).__name__}; only IF neurons with soft reset, "
            "stepped plainly, keep what they could not emit: convert with such a recipe.",
        )
    shares: dict[str, list[Tensor]] = {}
    runner = Runner(snn, require_steps(T), (T,))
    for inputs in Samples(snn, data, sequence):
        run = runner(inputs)
        for key, site in snn.sites().items():
            rate = run.firing_rate[key]
            debt, said = _debt(site, len(rate)), T * rate.flatten(1).sum(1).double()
            shares.setdefault(key, []).append(torch.where(debt > 0, debt / (debt + said), 0.0))
    reset(snn)
    require(bool(shares), "The data holds no batch, or the network no spiking site.", CalibrationError)
    return {key: torch.cat(parts) for key, parts in shares.items()}


def limits(
    snn: SpikingNetwork,
    data: Any,
    T: int,
    *,
    ann: nn.Module | None = None,
    quantile: float = 0.99,
    sequence: Layout = None,
) -> Limits:
    """Return the clipped share of each site that a ``quantile`` of the samples, those of calibration, do not exceed.

    There, too, a little is clipped. ``limits(snn, calibration, T).outside(snn, x)`` tells which inputs lose more: they
    lie outside the calibrated range, though what is decided on them may be right. Of several processes each gives its
    part of ``data``.

    Args:
        snn: the converted network.
        data: inputs, read as for :func:`clipped_share`.
        T: number of time steps.
        ann: not read; every analysis takes it.
        quantile: share of the samples within the limits, in (0, 1].
        sequence: whether batches hold frames, as for :func:`convert`.

    Returns:
        The :class:`Limits`, a share for every site.

    Raises:
        ValueError: where neurons are not IF with soft reset, or a tuner steps them.
        CalibrationError: for data that cannot be used.
    """
    require(0 < quantile <= 1, f"quantile={quantile!r}: give a number in (0, 1].")
    shares = clipped_share(snn, data, T, sequence=sequence)
    return Limits(T, {key: float(torch.cat(gathered(share)).quantile(quantile)) for key, share in shares.items()})


def _debt(site: SpikingSite, samples: int) -> Tensor:
    """Return what the neurons of a site hold beyond their thresholds, summed by each of N samples, [N]."""
    v = site.potential
    assert v is not None
    v = v.abs() if isinstance(site.spec, SignedEncoder) else v
    return (v - 1).clamp_min(0).reshape(samples, -1).sum(1, dtype=torch.float64)
