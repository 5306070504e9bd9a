"""A bias for every step: what a site does with it, and that the tuner brings cumulative outputs closer to the ANN."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

import conversion_ext as cx
from conversion_ext.backends import available, get_backend
from conversion_ext.network.site import SpikingSite
from conversion_ext.tuners import Tuner
from conversion_ext.types import PerChannel, Steps
from tests.contract.test_tuners import pair
from tests.live import live

THRESHOLD = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
PER_STEP = cx.BiasCorrection(per_step=True)


def site_with(bias, scaled=True, backend="reference", static=False):
    site = SpikingSite("site", cx.IF(), get_backend(backend), THRESHOLD, PerChannel(), static)
    site.bias, site.scaled = bias, scaled
    return site


def inputs(T, seed=0):
    """Random currents [T, N, C, L] in units of the threshold, and as a scaled site gets them."""
    x_seq = torch.rand((T, 4, 3, 5), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x_seq, x_seq * THRESHOLD[:, None]


def biases(S):
    return torch.randn((S, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 4


def by_hand(x_seq, bias):
    """The loop in ANN units; steps beyond the biases get their mean."""
    v, spikes = THRESHOLD[:, None] / 2, []
    for t, x in enumerate(x_seq):
        b = bias[t] if t < len(bias) else bias.mean(0)
        v = v + x + b[:, None]
        spikes.append((v >= THRESHOLD[:, None]).double())
        v = v - THRESHOLD[:, None] * spikes[-1]
    return torch.stack(spikes), v


@pytest.mark.parametrize("chunk", [1, 3, 8])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("backend", available())
def test_each_step_gets_its_bias_and_later_ones_the_mean(backend, scaled, chunk):
    T, bias = 8, biases(5)
    units, x_seq = inputs(T)
    expected, v = by_hand(x_seq, bias)
    site = site_with(bias, scaled, backend)
    for _ in range(2):  # after a reset it begins with the first bias again
        parts = (x_seq if scaled else units).split(chunk)
        found = torch.cat([site.spikes(p.flatten(0, 1), Steps(len(p))).unflatten(0, (len(p), -1)) for p in parts])
        assert torch.equal(found, expected)
        assert site.potential is not None
        torch.testing.assert_close(site.potential * THRESHOLD[:, None], v)  # what was given, biases with it, minus sent
        cx.reset(site)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("static", [True, False])
def test_equal_biases_are_one_bias(static, scaled):
    bias = biases(1)[0]
    x = inputs(8)[1]
    given, steps = (x[0], Steps(8, constant=True)) if static else (x.flatten(0, 1), Steps(8))
    one, many = (site_with(b, scaled, static=static)(given, steps) for b in (bias, bias.expand(8, 3)))
    assert torch.equal(one, many)


def test_blocks_get_the_mean_of_their_steps():
    """What a block was given and what it sent differ by the potential, at the end of each."""
    K, bias = 4, biases(6)  # the second block lies half beyond the biases
    x = inputs(3)[1]
    site = site_with(bias)
    given = torch.cat((bias, bias.mean(0).expand(6, 3))).unflatten(0, (3, K)).sum(1)
    total = torch.zeros_like(x[0])
    for current, b in zip(x, given, strict=True):
        total = total + K * current + b[:, None] - K * site(current, Steps(1, block=K))
        assert site.potential is not None
        torch.testing.assert_close(total, (site.potential - 0.5) * THRESHOLD[:, None])


@dataclass(frozen=True, kw_only=True)
class Distances(Tuner):
    """Changes nothing and notes how far each channel's cumulative mean output is from the ANN's, [T, C] per site."""

    seen: dict = field(default_factory=dict)

    def tune_site(self, stop):
        emitted = torch.cat([stop.emitted(part) for part in stop.parts], 1)
        wanted = torch.cat([stop.target(part) for part in stop.parts])
        self.seen[stop.site.key] = (emitted - wanted).movedim(2, 1).flatten(2).mean(2).cumsum(0)


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("name", ["residual", "inception", "gated"])
def test_cumulative_means_come_closer(name, block):
    ann, x = live(name, samples=24)
    before, after = Distances(), Distances()
    recipe = cx.Recipe(cx.Percentile(99.0), tuners=(before, PER_STEP, after), block=block)
    snn = cx.convert(ann, list(x.split(10)), recipe=recipe, T=4, backend="reference", progress=False)
    norms = {key: (before.seen[key].norm(dim=0), after.seen[key].norm(dim=0)) for key in before.seen}
    for old, new in norms.values():
        assert (new <= old * (1 + 1e-9)).all()
    first = next(iter(norms))
    assert (after.seen[first].norm(dim=1) < before.seen[first].norm(dim=1)).all()  # at every step
    assert all(site.bias.shape[0] == 4 for site in snn.sites().values())


def test_every_framework_folding_chunk_and_step_mode_give_the_same():
    _, x, _, snn = pair(PER_STEP, fold=False)
    expected = cx.simulate(snn, x, 6).outputs
    for backend in available():
        _, _, _, other = pair(PER_STEP, backend=backend)
        for chunk in (1, 3, 6):
            found = cx.simulate(other, x, 6, time_chunk=chunk).outputs
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        cx.reset(other)
        other.step_mode = "m"
        sequence = other(x.expand(6, *x.shape))
        cx.reset(other)
        other.step_mode = "s"
        steps = torch.stack([other(x) for _ in range(6)])
        for outputs in (sequence, steps):
            means = outputs.cumsum(0) / torch.arange(1, 7).reshape(-1, 1, 1)
            torch.testing.assert_close(means, expected, rtol=1e-9, atol=1e-9)


def test_what_shifts_the_steps_is_refused():
    with pytest.raises(ValueError, match="single steps"):
        cx.Recipe(tuners=(PER_STEP, cx.tuners.ResidualPotential()))
    with pytest.raises(ValueError, match="per_step"):
        cx.BiasCorrection(per_step=1)  # type: ignore[arg-type]
