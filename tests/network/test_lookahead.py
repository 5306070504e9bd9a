"""Look-ahead against the rule written out in fractions, tick by tick and as a whole run, and what it costs in steps."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.backends import available, get_backend
from conversion_ext.errors import StateError, UnsupportedError
from conversion_ext.integer import integers
from conversion_ext.network.lookahead import LookAhead
from conversion_ext.network.site import SpikingSite
from conversion_ext.neurons import WeightedIF
from conversion_ext.types import Steps
from tests.live import live, live_inputs, make_live

pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data")
NEURONS = [cx.IF(lookahead=1), cx.IF(lookahead=2), WeightedIF(), WeightedIF(lookahead=2)]


def site_of(d, backend="reference", spec=None):
    site = SpikingSite("a", spec or cx.IF(), get_backend(backend), torch.ones((), dtype=torch.float64), cx.PerLayer())
    site.clock = None if d is None else LookAhead(d)
    return site


def sent(site, z_seq):
    cx.reset(site)
    return site(z_seq.flatten(0, 1).unsqueeze(1), Steps(len(z_seq))).view(z_seq.shape)


def dyadic(T, N, seed=0):
    z = torch.randn(T, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((z + 0.5) * 64).round() / 64


def rule(z, d):
    """Spikes of one neuron for currents z: at step k towards k/T of the total that the first k + d let it expect."""
    T, z, count, spikes = len(z), [Fraction(v) for v in z], 0, []
    for k in range(1, T + 1):
        j = min(T, k + d)
        spikes.append(int(Fraction(1, 2) + Fraction(k, j) * sum(z[:j]) - count >= 1))
        count += spikes[-1]
    return spikes


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("T", [1, 2, 3, 4, 7])
def test_a_site_fires_towards_its_share_of_the_expected_total(T, backend):
    for d in range(1, T + 1):
        z_seq = dyadic(T, 60, seed=d) + 0.001  # no ties
        expected = torch.tensor([rule(z, d) for z in z_seq.T.tolist()], dtype=torch.float64).T
        assert torch.equal(sent(site_of(d, backend), z_seq), expected)


@pytest.mark.parametrize("backend", available())
def test_no_lookahead_is_plain_bit_for_bit(backend):
    z_seq = torch.randn(9, 50, dtype=torch.float64)
    assert torch.equal(sent(site_of(0, backend), z_seq), sent(site_of(None, backend), z_seq))


@pytest.mark.parametrize("T", [1, 2, 4, 8])
def test_looking_to_the_end_gives_the_counts_of_constant_current(T):
    z_seq = dyadic(T, 200)  # sums and their halves are exact
    expected = torch.floor(z_seq.sum(0) + 0.5).clamp(0, T)
    for d in (T - 1, T, T + 3):
        assert torch.equal(sent(site_of(max(d, 1)), z_seq).sum(0), expected)


def test_a_constant_current_is_not_changed():
    for d in (1, 3):
        z_seq = dyadic(1, 100).expand(6, 100)
        assert torch.equal(sent(site_of(d), z_seq), sent(site_of(None), z_seq))


@pytest.mark.parametrize("spec", NEURONS[1:3], ids=str)
def test_step_k_does_not_depend_on_inputs_after_k_plus_d(spec):
    T, z_seq = 4, torch.randn(4, 100, dtype=torch.float64) + 0.5
    for k in range(1, T + 1):
        j = min(T, k + spec.ahead)
        other = torch.cat((z_seq[:j], torch.randn(T - j, 100, dtype=torch.float64)))
        site = site_of(0, spec=spec.timed(T))
        site.clock = LookAhead(spec.ahead, site.spec.weights, total=site.spec.weights is not None)
        assert torch.equal(sent(site, z_seq)[:k], sent(site, other)[:k])


def network(neuron, name="residual", backend="reference", T=4, **options):
    ann, x = live(name, samples=5)
    recipe = cx.Recipe(cx.MeanSquaredError(), neuron, family=neuron.family)
    return ann, x, cx.convert(ann, x, recipe=recipe, T=T, backend=backend, progress=False, **options)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("name", ["residual", "dense"])
@pytest.mark.parametrize("backend", available())
def test_ticks_give_the_whole_run_after_the_lag_bit_for_bit(backend, name, neuron):
    _, x, snn = network(neuron, name, backend)
    T, lag = 4, snn.conversion.lag
    found = cx.simulate(snn, x, T)
    assert found.latency_steps == snn.conversion.latency_steps == T + lag > T
    cx.reset(snn)
    with torch.no_grad():
        ticks = torch.stack([snn(x) for _ in range(T + lag + 2)])
        cx.reset(snn)
        snn.step_mode = "m"
        sequences = torch.cat([snn(x.expand(K, *x.shape)) for K in (3, T + lag - 1)])
    assert torch.equal(ticks, sequences)
    assert not ticks[:lag].any()
    assert not ticks[T + lag :].any()
    steps = torch.arange(1, T + 1, dtype=x.dtype).view(-1, *[1] * (ticks.dim() - 1))
    sums = ticks[lag : lag + T].cumsum(0)
    torch.testing.assert_close(sums / steps, found.outputs, rtol=1e-12, atol=1e-12)


def test_an_output_does_not_depend_on_frames_that_come_later():
    _, x, snn = network(cx.IF(lookahead=1))
    ticks = 4 + snn.conversion.lag
    frames = x + 0.1 * torch.randn(ticks, *x.shape, dtype=x.dtype)
    snn.step_mode = "m"
    with torch.no_grad():
        whole = snn(frames)
        for t in (snn.conversion.lag + 1, ticks - 1):
            cx.reset(snn)
            later = torch.cat((frames[:t], torch.randn_like(frames[t:])))
            assert torch.equal(snn(later)[:t], whole[:t])


@pytest.mark.parametrize("d", [1, 2])
def test_latency_is_T_and_d_for_every_site_behind_the_first(d):
    layers = [layer for _ in range(5) for layer in (nn.Linear(6, 6), nn.ReLU())]
    ann = make_live(nn.Sequential(*layers, nn.Linear(6, 3)), 6)
    x = live_inputs(ann, 6, samples=8)
    recipe = cx.Recipe(cx.MeanSquaredError(), cx.IF(lookahead=d))
    snn = cx.convert(ann, x, recipe=recipe, T=4, backend="reference", progress=False)
    found = cx.simulate(snn, x, 4)
    assert found.latency_steps == snn.conversion.latency_steps == 4 + 4 * d
    assert found.total_steps == 4
    assert [row.lag for row in snn.conversion.table() if row.neurons] == [d * i for i in range(5)]
    assert cx.evaluate(snn, [(x, torch.zeros(8).long())], 4, progress=False).latency_steps == 4 + 4 * d


class Shortcut(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(5, 5) for _ in range(3))
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.relu(self.first(x))
        return self.relu(self.third(self.relu(self.second(x))) + x)


def test_a_shortcut_that_arrives_earlier_has_a_fraction_of_its_own():
    """The last site knows k + 1 steps of the main path and k + 2 of the shortcut, each extrapolated by itself."""
    ann = make_live(Shortcut(), 5).double()
    x, T = live_inputs(ann, 5, samples=9), 4
    recipe = cx.Recipe(cx.Maximum(), cx.IF(lookahead=1))
    snn = cx.convert(ann, x, recipe=recipe, T=T, backend="reference", fold=False, progress=False)
    found = cx.simulate(snn, x, T, record=("spikes",)).recorded["spikes"]
    first, second, last = (found[key] for key in snn.sites())
    scales = list(snn.conversion.thresholds.values())
    count = torch.zeros_like(last[0])
    for k in range(1, T + 1):
        main, short = min(T, k + 1), min(T, k + 2)
        total = ann.third(scales[1] * second[:main].mean(0)) + scales[0] * first[:short].mean(0)
        margin = 0.5 + k * total / scales[2] - count - 1
        assert (margin.abs() > 1e-9).all()
        assert torch.equal(last[k - 1], (margin >= 0).double())
        count += last[k - 1]


@pytest.mark.parametrize("neuron", NEURONS[::3], ids=str)
def test_folding_copies_and_state_dicts_keep_it(neuron):
    _, x, snn = network(neuron)
    _, _, unfolded = network(neuron, fold=False)
    expected = cx.simulate(snn, x, 4).outputs
    torch.testing.assert_close(cx.simulate(unfolded, x, 4).outputs, expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(StateError, match="reset the network"):
        snn(x)
    assert torch.equal(cx.simulate(copy.deepcopy(snn), x, 4).outputs, expected)
    _, _, other = network(neuron)
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(snn.state_dict())
    assert torch.equal(cx.simulate(other, x, 4).outputs, expected)


@pytest.mark.parametrize("neuron", NEURONS[::2], ids=str)
@pytest.mark.parametrize("backend", available())
def test_it_learns_from_surrogate_gradients(backend, neuron):
    torch.manual_seed(0)
    ann = make_live(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)), 8)
    x = live_inputs(ann, 8, samples=64)
    recipe = cx.Recipe(cx.MeanSquaredError(), neuron, family=neuron.family)
    snn = cx.convert(ann, x, recipe=recipe, T=2, backend=backend, progress=False)
    target = torch.randint(0, 3, (64,))
    result = cx.finetune(snn, [(x, target)] * 4, T=2, epochs=3, progress=False)
    assert result.history[-1].loss < result.history[1].loss
    assert cx.simulate(result.snn, x, 2).latency_steps == snn.conversion.latency_steps


def test_what_cannot_be_done_is_said_in_one_sentence():
    _, x, snn = network(cx.IF(lookahead=1))
    _, _, weighted = network(WeightedIF())
    with pytest.raises(ValueError, match="all T=4 steps are one call"):
        cx.simulate(snn, x, 4, time_chunk=2)
    with pytest.raises(ValueError, match="look-ahead"):
        cx.simulate(snn, x, 4, exit=cx.readouts.Confidence(1.0))
    with pytest.raises(ValueError, match="look-ahead"):
        cx.simulate(snn, x, 4, record=("potential",))
    with pytest.raises(ValueError, match="use block=1"):
        cx.simulate(snn, x, 4, block=2)
    cx.simulate(snn, x, 4)
    with pytest.raises(StateError, match="reset the network"):
        cx.simulate(snn, x, 4, reset=False)
    with pytest.raises(ValueError, match="run 4 steps"):
        cx.simulate(weighted, x, 5)
    with pytest.raises(ValueError, match="run 4 steps"):
        cx.twin(weighted, 3)
    with pytest.raises(UnsupportedError, match="looks ahead"):
        integers(snn, x)
    with pytest.raises(ValueError, match="hard reset"):
        cx.IF(reset=cx.Reset.ZERO, lookahead=1)
    with pytest.raises(ValueError, match="integer >= 0"):
        cx.IF(lookahead=-1)
    with pytest.raises(ValueError, match="leave them out"):
        cx.Recipe(neuron=cx.IF(lookahead=1), block=None)
    with pytest.raises(ValueError, match="leave out one"):
        cx.Recipe(neuron=cx.IF(lookahead=1), tuners=(cx.tuners.ResidualPotential(),))
    endless = cx.convert(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU()), torch.rand(4, 3),
                         recipe="default-lookahead", backend="reference", progress=False)  # fmt: skip
    assert cx.simulate(endless, torch.rand(2, 3), 5).latency_steps == 6
    cx.reset(endless)
    with pytest.raises(StateError, match="convert with T"):
        endless(torch.rand(2, 3))


def test_graded_functions_need_whole_runs():
    ann = make_live(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 6), nn.ReLU(),
                                  nn.Linear(6, 2)), 6)  # fmt: skip
    x = live_inputs(ann, 6, samples=8)
    snn = cx.convert(ann, x, recipe="default-lookahead", T=4, backend="reference", progress=False)
    assert cx.simulate(snn, x, 4).latency_steps > 4
    cx.reset(snn)
    with pytest.raises(StateError, match="cannot wait"):
        snn(x)


@pytest.mark.parametrize("weights", [(2, 1), (4, 2, 1), (8, 4, 2, 1), (4, 2, 2, 1), (2, 2, 1, 1)], ids=str)
def test_one_step_ahead_an_exact_train_is_passed_on_exactly(weights):
    """What one site sent, read through a weight of one, is sent again: within half the last weight, so the same."""
    T, W = len(weights), sum(weights)
    trains = []
    for number in range(W + 1):
        rest, train = number, []
        for k, w in enumerate(weights):
            train.append(w * int(2 * rest >= w + sum(weights[k + 1 :])))
            rest -= train[-1]
        trains.append(train)
    site = site_of(None, spec=WeightedIF(weights=weights))
    site.clock = LookAhead(1, weights, total=True)
    found = sent(site, torch.tensor(trains, dtype=torch.float64).T)
    assert found.sum(0).tolist() == [sum(train) for train in trains] == list(range(W + 1))
    assert len(found) == T
