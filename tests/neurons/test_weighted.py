"""Spikes weighted in time against greedy expansions in Python's integers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.backends import available, get_backend
from conversion_ext.errors import UnsupportedError
from conversion_ext.neurons import WeightedIF
from conversion_ext.types import Family, Steps
from tests.live import live

pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data")
WEIGHTS = [(1,), (2, 1), (4, 2, 1), (8, 4, 2, 1), (4, 2, 2, 1), (1, 1, 1), (2, 2, 1, 1)]
FAMILY = {"family": "weighted"}


def greedy(units: float, weights: tuple[int, ...]) -> list[int]:
    """The expansion of a number of units, rounded and clipped: a weight is taken where what it leaves can be sent."""
    rest, spikes = min(max(math.floor(units + 0.5), 0), sum(weights)), []
    for k, w in enumerate(weights):
        later = sum(weights[k + 1 :])
        spikes.append(int(2 * rest >= w + later))
        rest -= w * spikes[-1]
    assert rest == 0
    return spikes


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_constant_input_gives_the_greedy_expansion_of_the_clipped_activation(weights, backend):
    T, W = len(weights), sum(weights)
    ann = nn.Sequential(nn.Identity(), nn.ReLU())
    x = torch.linspace(-0.3, 1.4, 341, dtype=torch.float64).unsqueeze(1)
    recipe = cx.Recipe(cx.Maximum(), WeightedIF(weights=weights), **FAMILY)
    snn = cx.convert(ann, torch.ones(1, 1).double(), recipe=recipe, T=T, backend=backend, progress=False)
    spikes = cx.simulate(snn, x, T, record=("spikes",))
    (train,) = spikes.recorded["spikes"].values()
    decoded = (train[:, :, 0] * torch.tensor(weights).view(-1, 1)).sum(0)
    units = (W * x[:, 0]).clamp(0, W)
    assert ((decoded - units).abs() <= 0.5 + 1e-9).all()
    torch.testing.assert_close(spikes.output[:, 0] * W, decoded.double())
    if all(a == 2 * b for a, b in zip(weights, weights[1:], strict=False)):  # one expansion of each number
        away = (units - units.floor() - 0.5).abs() > 1e-9
        expected = torch.tensor([greedy(float(u), weights) for u in units]).T
        assert torch.equal(train[:, away, 0].long(), expected[:, away])


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_the_neuron_is_a_soft_reset_with_a_threshold_of_its_own_at_each_step(weights):
    spec, T = WeightedIF(weights=weights), len(weights)
    x_seq = torch.randn(T + 2, 7, 3, dtype=torch.float64) * 3
    backend = get_backend("reference")
    found = backend.run(backend.neuron(spec), x_seq, 0.5)
    for n in range(7):
        for c in range(3):
            v, spikes = 0.5, []
            for k, x in enumerate(x_seq[:, n, c].tolist()):
                v += x
                threshold = (weights[k] + sum(weights[k + 1 :]) + 1) / 2 if k < T else float("inf")
                spikes.append(int(v >= threshold))
                v -= weights[k] * spikes[-1] if k < T else 0
            assert found[:, n, c].tolist() == spikes


@pytest.mark.parametrize("weights", WEIGHTS[1:], ids=str)
def test_with_all_input_known_it_is_within_half_the_last_weight(weights):
    T = len(weights)
    z_seq = torch.randn(T, 300, 1, dtype=torch.float64) * 2 + 1
    site = cx.convert(nn.Sequential(nn.Linear(1, 1).double(), nn.ReLU(), nn.Linear(1, 1).double(), nn.ReLU()),
                      torch.ones(2, 1).double(), T=T, backend="reference", progress=False,
                      recipe=cx.Recipe(cx.Maximum(), WeightedIF(weights=weights, lookahead=max(1, T - 1)), **FAMILY),
                      fold=False)  # fmt: skip
    *_, last = site.sites().values()
    last.threshold.fill_(1.0)
    decoded = last.spikes(z_seq.flatten(0, 1), Steps(T)).unflatten(0, (T, -1)).sum(0)
    assert ((decoded - z_seq.sum(0).clamp(0, sum(weights))).abs() <= 0.5 + 1e-12).all()


def converted(name="residual", T=4, backend="reference", tuners=(), **options):
    ann, x = live(name, samples=16)
    recipe = cx.Recipe(cx.MeanSquaredError(), WeightedIF(), tuners=tuners, **FAMILY)
    return ann, x, cx.convert(ann, x, recipe=recipe, T=T, backend=backend, progress=False, **options)


@pytest.mark.parametrize("T", [2, 4])
@pytest.mark.parametrize("name", ["residual", "dense"])
def test_weight_layers_and_pools_see_spikes_of_the_weight_of_the_step(name, T):
    _, x, snn = converted(name, T)
    seen: dict[str, torch.Tensor] = {}
    layers = {row.key for row in snn.conversion.table() if row.kind == "synapse" and row.sees is Family.WEIGHTED}
    assert layers
    handles = []
    for node in snn.body.graph.nodes:
        if node.meta.get("key", str(node.target)) in layers and node.op == "call_module":
            module = snn.body.get_submodule(node.target)
            key = node.meta.get("key", str(node.target))
            handles.append(module.register_forward_pre_hook(lambda m, a, key=key: seen.__setitem__(key, a[0].detach())))
    cx.simulate(snn, x, T)
    for handle in handles:
        handle.remove()
    assert seen.keys() == layers
    for value in seen.values():
        for k, step in enumerate(value.unflatten(0, (T, -1))):
            assert set(step.unique().tolist()) <= {0.0, float(2 ** (T - 1 - k))}


@pytest.mark.parametrize("backend", available())
def test_more_steps_come_closer(backend):
    ann, x, _ = converted()
    errors = []
    for T in (2, 4, 6):
        _, _, snn = converted(T=T, backend=backend, tuners=(cx.tuners.DecisionTable(),))
        with torch.no_grad():
            errors.append(float((cx.simulate(snn, x, T).output - ann(x)).norm() / ann(x).norm()))
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < errors[1]


def test_the_twin_has_as_many_levels_as_the_weights_add_up_to():
    ann = nn.Sequential(nn.Linear(1, 1).double(), nn.ReLU())
    nn.init.ones_(ann[0].weight)
    nn.init.zeros_(ann[0].bias)
    recipe = cx.Recipe(cx.Maximum(), WeightedIF(weights=(4, 2, 1)), **FAMILY)
    snn = cx.convert(ann, torch.ones(1, 1).double(), recipe=recipe, T=3, backend="reference", progress=False)
    x = torch.linspace(0, 1, 500, dtype=torch.float64).unsqueeze(1)
    expected = torch.floor(7 * x + 0.5) / 7
    torch.testing.assert_close(cx.twin(snn, 3)(x), expected, rtol=0, atol=1e-12)


def test_operations_count_a_spike_of_any_weight_once():
    _, x, snn = converted("dense")
    report = cx.synops(snn, x, 4)
    assert report.bits == 4
    weighted = [layer for layer in report.layers if layer.sees is Family.WEIGHTED]
    assert weighted
    assert all(layer.synops == layer.events > 0 for layer in weighted)


@pytest.mark.parametrize("T", [*range(1, 13)])
def test_weights_for_any_number_of_steps_reach_every_number_of_units(T):
    weights = WeightedIF().timed(T).weights
    assert weights is not None
    assert len(weights) == T
    assert WeightedIF(weights=weights).weights == weights  # falling powers of two, accepted as given
    reached = {0}
    for w in weights:
        reached |= {n + w for n in reached}
    assert reached == set(range(sum(weights) + 1))
    assert T == 1 or sum(weights) > sum(WeightedIF().timed(T - 1).weights or ())


def test_what_it_cannot_be_is_refused():
    with pytest.raises(ValueError, match="powers of two"):
        WeightedIF(weights=(3, 2, 1))
    with pytest.raises(ValueError, match="powers of two"):
        WeightedIF(weights=(4, 1))
    for nothing in (4, True, (True,), "421", ()):
        with pytest.raises(ValueError, match="powers of two"):
            WeightedIF(weights=nothing)  # type: ignore[arg-type]
    for steps in (64, 5000):
        with pytest.raises(ValueError, match="take fewer steps"):
            WeightedIF().timed(steps)
    with pytest.raises(ValueError, match="convert with T"):
        cx.convert(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.rand(4, 2), recipe="default-weighted")
    signed = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.LeakyReLU(), nn.Linear(4, 2))
    assert [p.path for p in cx.check(signed, torch.rand(8, 4), recipe="default-weighted")] == ["3"]
    with pytest.raises(UnsupportedError, match="cannot follow weighted spikes"):
        cx.convert(signed, torch.rand(8, 4), recipe="default-weighted", T=4, backend="reference", progress=False)
    with pytest.raises(ValueError, match="WeightedIF"):
        cx.Recipe(tuners=(cx.tuners.DecisionTable(),))
    with pytest.raises(ValueError, match="worth several"):
        cx.Recipe(neuron=WeightedIF(), readout=cx.readouts.SpikeCount(), **FAMILY)
