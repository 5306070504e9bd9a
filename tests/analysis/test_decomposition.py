"""Errors of sites against loops and closed forms written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.analysis.decomposition import Decomposition, SiteErrors, decompose
from conversion_ext.backends import available
from tests.contract.test_tuners import activations
from tests.live import live, perceptron


def rms(x, a):
    return float(x.square().mean().sqrt() / a.square().mean().sqrt())


def quantized(z, scale, T):
    return scale * torch.clamp(torch.floor(T * z / scale + 0.5), 0, T) / T


def errors_of(snn, ann, x, T, **options):
    return {site.key: site for site in decompose(snn, list(x.split(7)), T, ann=ann, **options).sites}


def network(T, fold, backend="reference"):
    ann = perceptron(6, 8, 5, 2).double()
    x = torch.randn(20, 6, dtype=torch.float64)
    recipe = cx.Recipe(cx.Percentile(90.0))  # clips
    return ann, x, cx.convert(ann, x, recipe=recipe, T=T, backend=backend, fold=fold, progress=False)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("T", [1, 5])
def test_two_layers_by_hand(T, backend, fold):
    ann, x, snn = network(T, fold, backend)
    found = errors_of(snn, ann, x, T)
    one, two = snn.conversion.thresholds.values()
    with torch.no_grad():
        z1 = ann[0](x)
        z2 = ann[2](z1.relu())
        # The first layer sees a constant current: an even train, whose errors have a closed form.
        rate = quantized(z1, one, T)
        clipped = z1.clamp_min(0).minimum(one)
        expected = [clipped - z1.relu(), rate - clipped, 0 * rate, 0 * rate, rate - z1.relu()]
        check(found["1"], 1, expected, z1.relu())
        # The second sees the uneven trains of the first: a loop over time.
        v1, v2, given, sent = one / 2, two / 2, 0, 0
        for _ in range(T):
            v1 = v1 + z1
            s1 = one * (v1 >= one).double()
            v1 = v1 - s1
            v2 = v2 + ann[2](s1)
            s2 = two * (v2 >= two).double()
            v2 = v2 - s2
            given, sent = given + ann[2](s1) / T, sent + s2 / T
        even = quantized(given, two, T)
        rate, a = quantized(z2, two, T), z2.relu()
        clipped = a.minimum(two)
        check(found["3"], 2, [clipped - a, rate - clipped, even - rate, sent - even, sent - a], a)
        assert (found["3"].unevenness_error > 0) == (T > 1)  # one step is even


def check(site, depth, expected, a):
    assert site.depth == depth
    names = ("clipping", "quantization", "inherited", "unevenness", "total")
    for name, error in zip(names, expected, strict=True):
        assert getattr(site, f"{name}_error") == pytest.approx(rms(error, a), rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("name", ["residual", "inception", "bottleneck", "gated"])
def test_totals_are_what_a_simulation_shows(name):
    ann, x = live(name, samples=12)
    snn = cx.convert(ann, x, recipe="default", T=4, backend="reference", progress=False)
    before = cx.simulate(snn, x, 4)
    found = errors_of(snn, ann, x, 4)
    for key, a in activations(snn, ann, x).items():
        sent = before.firing_rate[key] * snn.sites()[key].amplitude(a.dim())
        site = found[key]
        assert site.total_error == pytest.approx(rms(sent - a, a), rel=1e-9)
        parts = (site.clipping_error, site.quantization_error, site.inherited_error, site.unevenness_error)
        assert site.total_error <= sum(parts) * (1 + 1e-9)
    assert set(found) == set(snn.sites())
    assert torch.equal(cx.simulate(snn, x, 4).outputs, before.outputs)  # the network is as it was


def test_more_steps_quantize_less_and_one_block_is_even():
    ann, x, snn = network(4, True)
    few, many = errors_of(snn, ann, x, 4)["3"], errors_of(snn, ann, x, 64)["3"]
    assert many.quantization_error < few.quantization_error / 4
    assert many.clipping_error == pytest.approx(few.clipping_error, rel=1e-12)  # the parts added up differ
    assert few.clipping_error > 0
    recipe = cx.Recipe(cx.Percentile(90.0), block=None)
    even = cx.convert(ann, x, recipe=recipe, T=4, backend="reference", progress=False)
    assert all(site.unevenness_error == 0 for site in errors_of(even, ann, x, 4).values())


def test_the_table_is_aligned():
    table = str(Decomposition(4, (SiteErrors("a", 1, *[0.125] * 5), SiteErrors("long.name", 10, *[2.0] * 5))))
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["a", "1", *["0.1250"] * 5]


def test_what_cannot_be_decomposed_is_refused():
    ann, x, snn = network(4, True)
    with pytest.raises(TypeError, match="convert returned"):
        decompose(ann, x, 4, ann=ann)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="T=0"):
        decompose(snn, x, 0, ann=ann)
    with pytest.raises(ValueError, match="differ in the sites"):
        decompose(snn, x, 4, ann=nn.Sequential(*ann[:2]))
    masked = cx.convert(
        ann, x, recipe=cx.Recipe(tuners=(cx.tuners.ResidualPotential(),)), backend="reference", progress=False
    )
    with pytest.raises(ValueError, match="ResidualPotential"):
        decompose(masked, x, 4, ann=ann)
    random = cx.convert(
        ann, x, recipe=cx.Recipe(encoder=cx.encoders.Poisson(signed=True)), backend="reference", progress=False
    )
    with pytest.raises(ValueError, match="constant current"):
        decompose(random, x, 4, ann=ann)
