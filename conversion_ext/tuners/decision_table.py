"""Decisions of weighted spikes, calibrated from what really arrives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.neurons import Neuron, WeightedIF
from conversion_ext.tuners.base import Tuner, register_tuner
from conversion_ext.types import Family, Steps

if TYPE_CHECKING:
    from conversion_ext.network.site import SpikingSite
    from conversion_ext.tuners.walk import SiteStop

__all__ = ["DecisionTable"]

# So many samples, and so many values of each channel, tell its thresholds as well as all.
SAMPLES, VALUES = 64, 1 << 14
MOST = 1 << 16  # beyond so many values of a channel, some positions of each sample are looked at


@dataclass(frozen=True, kw_only=True)
class DecisionTable(Tuner):
    """Choose the threshold of every channel and step at which weighted spikes leave the least error behind.

    While input is still to come, a neuron of :class:`WeightedIF` decides on what it expects. With R what remains to be
    sent of the total that really arrives, and r the sum of the weights still to come, an error of
    ``max(0, -R, R - r - 1)`` can no longer be made good. Of ``candidates`` thresholds around the neuron's own, each
    channel takes the one with the least mean square of it, step by step from the first; on no data it keeps its own.
    Where a random part of the samples, or some positions of each, have values enough, nothing else is looked at. Once
    all input is in, decisions are exact as they are. Changes ``SpikingSite.decisions``, nothing else.

    Use it in recipes of the family "weighted", behind tuners of weights, whose output it sees.
    """

    candidates: int = 241

    def __post_init__(self) -> None:
        require(
            isinstance(self.candidates, int) and self.candidates >= 3 and self.candidates % 2 == 1,
            f"DecisionTable(candidates={self.candidates!r}): give an odd number >= 3.",
        )

    def check(self, neuron: Neuron) -> None:
        """Raise unless ``neuron`` sends weighted spikes."""
        require(
            neuron.family is Family.WEIGHTED,
            f"{self} decides on weighted spikes, and here neurons are {neuron}; use WeightedIF().",
        )

    def tune_site(self, stop: SiteStop) -> None:
        """Fit the decisions of one site."""
        site = stop.site
        if not isinstance(site.spec, WeightedIF) or site.clock is None or site.static_input:
            return
        site.decisions = site.threshold.new_zeros(stop.T, site.threshold.numel())
        parts = stop.sample(SAMPLES, VALUES)
        for k in range(stop.T - 1 - site.clock.d):
            unit = torch.linspace(-1, 1, self.candidates, dtype=torch.float64, device=site.threshold.device)
            shifts = unit * sum(site.spec.known[k:])
            (costs,) = stop.exact_sum(partial(_costs, stop, site.spec, k, shifts), parts)
            nearest = shifts.abs().argsort(stable=True)  # of equal ones the least change
            best = nearest[costs[:, nearest].argmin(1)]
            site.decisions[k] = -shifts[best].to(site.decisions)


def _costs(stop: SiteStop, spec: WeightedIF, k: int, shifts: Tensor, part: int) -> tuple[Tensor]:
    """Return what decision k costs with its threshold changed by each of ``shifts``: [C, candidates].

    Costs are sums over samples and positions, relative to sending nothing.
    """
    expected, weights = stop.kept("expected", part, lambda: _expected(stop, part)), spec.known
    sent = torch.zeros_like(expected[0])
    for i in range(k):
        sent += weights[i] * (expected[i] + stop.site.decisions[i, :, None] - sent >= spec.thresholds[i])
    remains, later = expected[-1] - sent, sum(weights[k + 1 :])
    price = _lost(remains - weights[k], later) - _lost(remains, later)
    margin = (expected[k] - sent - spec.thresholds[k]).contiguous()
    passed = torch.bucketize(margin, shifts, right=True)  # how many of the shifted thresholds it reaches
    reached = price.new_zeros(len(price), len(shifts) + 1).scatter_add_(1, passed, price)
    return (reached.flip(1).cumsum(1).flip(1)[:, 1:],)


def _expected(stop: SiteStop, part: int) -> Tensor:
    """Return what the site expects of its total at each step, in its units: [T, C, samples and positions] float64.

    Where a channel has more values than MOST, every so many of them, in each part from another on.
    """
    site = stop.site
    assert site.clock is not None
    z_seq = site.currents(stop.current(part), Steps(stop.T, constant=True))
    start = site.start(z_seq[0])
    values, start = _by_channel(site, z_seq), _by_channel(site, start[None])
    apart = max(1, values.shape[2] * stop.chosen(SAMPLES, VALUES) // MOST)
    while math.gcd(apart, z_seq.shape[-1]) > 1:  # no column of an image is left out
        apart -= 1
    some = slice(stop.numbers[part] % apart, None, apart)
    return site.clock.run(values[..., some]).double().cumsum(0) + start[..., some]


def _by_channel(site: SpikingSite, value: Tensor) -> Tensor:
    """Return ``value`` [T, N, ...] as [T, C, samples and positions]; C is 1 where the site has one threshold."""
    if not site.threshold.dim():
        return value.flatten(1)[:, None]
    return value.movedim(site.dim % (value.dim() - 1) + 1, 1).flatten(2)


def _lost(remains: Tensor, left: int) -> Tensor:
    """Return the square of what can no longer be made good."""
    return (-remains).clamp_min(0).square() + (remains - left - 1).clamp_min(0).square()


register_tuner("decision_table", DecisionTable)
