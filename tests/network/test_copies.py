"""Copies of neurons against the multi-level neuron, Hermite's identity in fractions, and what they cost."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.backends import available, get_backend
from conversion_ext.errors import UnsupportedError
from conversion_ext.integer import integers
from conversion_ext.network.site import SpikingSite
from conversion_ext.neurons import BurstIF, WeightedIF
from conversion_ext.types import Family, Steps
from tests.live import live, live_inputs, make_live

pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data")


def site_of(spec, copies=1, threshold=1.0, backend="reference"):
    threshold = torch.tensor(threshold, dtype=torch.float64)
    return SpikingSite("a", spec, get_backend(backend), threshold, cx.PerLayer(), True, copies)


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("m", [2, 3, 4, 8])
def test_counts_are_those_of_the_multi_level_neuron_for_constant_input(m, backend):
    T, z = 4, torch.rand(500, 1, dtype=torch.float64) * 1.6 - 0.3
    copies, burst = site_of(cx.IF(), m, backend=backend), site_of(BurstIF(m), threshold=1 / m)
    many = copies.spikes(z, Steps(T, constant=True)).unflatten(0, (T, -1)).sum(0)
    at_once = burst.spikes(z, Steps(T, constant=True)).unflatten(0, (T, -1)).sum(0)
    assert torch.equal(many, at_once)
    hermite = [min(max(math.floor(m * T * Fraction(v) + Fraction(1, 2)), 0), m * T) for v in z.flatten().tolist()]
    assert many.flatten().tolist() == hermite


def converted(recipe="default-copies", name="residual", T=4, backend="reference", **options):
    ann, x = live(name, samples=16)
    return ann, x, cx.convert(ann, x, recipe=recipe, T=T, backend=backend, progress=False, **options)


def test_each_copy_is_a_neuron_of_its_own_from_potentials_one_mth_apart():
    _, x, snn = converted(cx.Recipe(cx.MeanSquaredError(), copies=3), fold=False)
    key, site = list(snn.sites().items())[1]
    inputs: list[torch.Tensor] = []
    handle = site.register_forward_pre_hook(lambda m, a: inputs.append(a[0]))
    found = cx.simulate(snn, x, 4, record=("spikes",)).recorded["spikes"][key]
    handle.remove()
    z_seq = site.currents(inputs[0], Steps(4, constant=True))
    total = torch.zeros_like(z_seq)
    for i in range(3):
        alone = site_of(cx.IF(v_init=(2 * i + 1) / 6))
        alone.static_input = False
        total += alone.spikes(z_seq.flatten(0, 1), Steps(4)).view_as(z_seq)
    assert torch.equal(found, total)


@pytest.mark.parametrize("backend", available())
def test_every_framework_step_mode_and_folding_give_the_same(backend):
    _, x, expected = converted(fold=False)
    _, _, snn = converted(backend=backend)
    outputs = cx.simulate(expected, x, 4).outputs
    torch.testing.assert_close(cx.simulate(snn, x, 4).outputs, outputs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(cx.simulate(snn, x, 4, time_chunk=1).outputs, outputs, rtol=1e-9, atol=1e-9)
    cx.reset(snn)
    with torch.no_grad():
        steps = torch.stack([snn(x) for _ in range(4)])
        cx.reset(snn)
        snn.step_mode = "m"
        torch.testing.assert_close(snn(x.expand(4, *x.shape)), steps)
    mean = cx.simulate(snn, x, 4, readout=cx.readouts.MeanOutput()).output
    torch.testing.assert_close(steps.mean(0), mean, rtol=1e-9, atol=1e-9)
    assert torch.equal(cx.simulate(copy.deepcopy(snn), x, 4).outputs, cx.simulate(snn, x, 4).outputs)


def test_they_cost_neurons_and_no_latency():
    _, x, one = converted("default")
    _, _, two = converted("default-copies")
    found = cx.simulate(two, x, 4)
    assert found.latency_steps == two.conversion.latency_steps == 4
    assert two.conversion.neurons == {key: 2 * n for key, n in one.conversion.neurons.items()}
    assert two.conversion.family is Family.BINARY
    assert {row.kind for row in two.conversion.table() if row.neurons} == {"IF x 2"}
    assert all(0 <= rate.min() and 1 < rate.max() <= 2 for rate in found.firing_rate.values())
    report = cx.synops(two, x, 4)
    assert sum(report.neurons.values()) == sum(two.conversion.neurons.values())
    assert report.spikes == {key: float(spikes.double().mean()) for key, spikes in found.spikes.items()}


def test_copies_come_closer_than_one():
    ann, x, one = converted(cx.Recipe(cx.MeanSquaredError()))
    _, _, three = converted(cx.Recipe(cx.MeanSquaredError(), copies=3))
    with torch.no_grad():
        wanted = ann(x)
        errors = [(cx.simulate(snn, x, 4).output - wanted).norm() for snn in (one, three)]
        twins = [(cx.twin(snn, 4)(x) - wanted).norm() for snn in (one, three)]
    assert errors[1] < 0.7 * errors[0]
    assert twins[1] < 0.5 * twins[0]


def test_chosen_sites_alone():
    _, _, plain = converted("default")
    chosen = list(plain.sites())[1]
    recipe = replace(cx.recipes.get("default"), copies={chosen: 4})
    _, x, snn = converted(recipe)
    assert {key: site.copies for key, site in snn.sites().items()} == {key: 4 if key == chosen else 1
                                                                       for key in plain.sites()}  # fmt: skip
    rates = cx.simulate(snn, x, 4).firing_rate
    assert [key for key, rate in rates.items() if rate.max() > 1] == [chosen]
    with pytest.raises(ValueError, match="the sites are"):
        converted(replace(recipe, copies={"nowhere": 2}))


def test_copies_look_ahead_and_weigh_too():
    for neuron in (cx.IF(lookahead=1), WeightedIF()):
        recipe = cx.Recipe(cx.MeanSquaredError(), neuron, family=neuron.family, copies=2)
        _, x, snn = converted(recipe)
        found, lag = cx.simulate(snn, x, 4), snn.conversion.lag
        cx.reset(snn)
        with torch.no_grad():
            ticks = torch.stack([snn(x) for _ in range(4 + lag)])
        torch.testing.assert_close(ticks.sum(0) / 4, found.output)


@pytest.mark.parametrize("backend", available())
def test_they_learn_and_are_kept(backend, tmp_path):
    torch.manual_seed(0)
    ann = make_live(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)), 8)
    x, target = live_inputs(ann, 8, samples=64), torch.randint(0, 3, (64,))
    snn = cx.convert(ann, x, recipe="default-copies", T=2, backend=backend, progress=False)
    result = cx.finetune(snn, [(x, target)] * 4, T=2, epochs=3, progress=False)
    assert result.history[-1].loss < result.history[1].loss
    cx.save(snn, tmp_path / "a.safetensors")
    assert torch.equal(cx.simulate(cx.load(tmp_path / "a.safetensors"), x, 2).outputs, cx.simulate(snn, x, 2).outputs)


def test_what_copies_cannot_do_is_refused():
    with pytest.raises(ValueError, match="number of neurons"):
        cx.Recipe(copies=0)
    with pytest.raises(ValueError, match="soft reset"):
        cx.Recipe(neuron=cx.IF(reset=cx.Reset.ZERO), copies=2)
    with pytest.raises(ValueError, match="soft reset"):
        cx.Recipe(neuron=BurstIF(), family="multi-level", copies=2)
    with pytest.raises(ValueError, match="act while simulating"):
        cx.Recipe(tuners=(cx.tuners.OffsetSpike(),), copies=2)
    _, x, snn = converted()
    with pytest.raises(UnsupportedError, match="copies"):
        integers(snn, x)
