"""Laws of converted networks: every small network, folded and not, every installed framework."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.network.spiking_network import SpikingNetwork
from tests import laws, zoo
from tests.live import live

PER_CHANNEL = cx.Recipe(cx.Percentile(99.0, granularity=cx.PerChannel()))
PER_LAYER = cx.Recipe(cx.Maximum())
BURST = replace(PER_CHANNEL, neuron=cx.neurons.BurstIF(4), family="multi-level")
SIGNED_BURST = replace(BURST, neuron=cx.neurons.BurstIF(3, signed=True))


@dataclass(frozen=True, kw_only=True)
class PowerOfTwo(cx.Percentile):
    """Percentile thresholds rounded up to powers of two, with which scaling is exact in binary arithmetic."""

    def threshold(self, stats, levels):  # noqa: D102
        return 2.0 ** super().threshold(stats, levels).double().log2().ceil()


def network(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    return live(name, samples=6, seed=5, dtype=dtype)


def converted(ann: nn.Module, x: Tensor, recipe: cx.Recipe = PER_CHANNEL, **options) -> SpikingNetwork:
    return cx.convert(ann, x, recipe=recipe, progress=False, **{"backend": "reference", **options})


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "unfolded"])
@pytest.mark.parametrize(
    "recipe", [PER_CHANNEL, PER_LAYER, BURST, SIGNED_BURST], ids=["channel", "layer", "burst", "signed burst"]
)
@pytest.mark.parametrize("name", zoo.SMALL)
def test_every_site_conserves_and_the_whole_is_the_ann_of_its_rates(name, recipe, fold):
    ann, x = network(name)
    snn = converted(ann, x, recipe, fold=fold)
    laws.assert_sites_exact(snn, (x[:3],), T=16)
    laws.assert_is_ann_of_rates(ann, snn, (x[:3],), T=16)


@pytest.mark.parametrize("recipe", [PER_CHANNEL, BURST], ids=["binary", "burst"])
@pytest.mark.parametrize("name", zoo.SMALL)
def test_folded_equals_unfolded_bit_for_bit_with_power_of_two_thresholds(name, recipe):
    ann, x = network(name, torch.float32)
    recipe = replace(recipe, normalizer=PowerOfTwo(99.0, granularity=cx.PerChannel()))
    folded, unfolded = (laws.spikes(converted(ann, x, recipe, fold=f), x[:3], 12) for f in (True, False))
    assert folded.keys() == unfolded.keys()
    for key in folded:
        assert torch.equal(folded[key], unfolded[key]), key
    assert sum(s.sum() for s in folded.values()) > 100  # the law is about spikes, so there must be some


@pytest.mark.parametrize("recipe", [PER_CHANNEL, BURST], ids=["binary", "burst"])
@pytest.mark.parametrize("name", zoo.SMALL)
def test_folded_differs_from_unfolded_at_ties_only(name, recipe):
    ann, x = network(name)
    folded, unfolded = (converted(ann, x, recipe, fold=f) for f in (True, False))
    laws.first_difference_is_a_tie(folded, unfolded, x[:2], 12)


@pytest.mark.parametrize("recipe", [PER_CHANNEL, BURST, SIGNED_BURST], ids=["binary", "burst", "signed burst"])
@pytest.mark.parametrize("name", zoo.SMALL)
def test_the_table_says_what_hooks_see(name, recipe):
    ann, x = network(name)
    laws.assert_table_is_what_weights_see(converted(ann, x, recipe), x[:3], T=12)


@pytest.mark.parametrize("backend", [b for b in available() if b != "reference"])
@pytest.mark.parametrize("recipe", [PER_CHANNEL, SIGNED_BURST], ids=["binary", "signed burst"])
@pytest.mark.parametrize("name", zoo.SMALL)
def test_frameworks_agree_spike_for_spike(name, recipe, backend):
    ann, x = network(name, torch.float32)
    ours, theirs = (laws.spikes(converted(ann, x, recipe, backend=b), x[:3], 8) for b in ("reference", backend))
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


@pytest.mark.parametrize("name", zoo.SMALL)
def test_modes_and_chunks_agree(name):
    ann, x = network(name)
    snn = converted(ann, x)
    whole = cx.simulate(snn, x[:3], 12, time_chunk=12, record=("spikes",))
    single = cx.simulate(snn, x[:3], 12, time_chunk=1, record=("spikes",))
    chunked = cx.simulate(snn, x[:3], 12, time_chunk=5, record=("spikes",))
    sequence = cx.simulate(snn, x_seq=x[:3].expand(12, *x[:3].shape).contiguous(), record=("spikes",))
    for other in (single, chunked, sequence):
        for key, spikes in whole.recorded["spikes"].items():
            assert torch.equal(spikes, other.recorded["spikes"][key]), key
        for a, b in zip(_leaves(whole.outputs), _leaves(other.outputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_step_modes_of_the_root_agree():
    ann, x = network("residual")
    snn = converted(ann, x)
    with torch.no_grad():
        steps = torch.stack([snn(x[:3]) for _ in range(8)])
        cx.reset(snn)
        snn.step_mode = "m"
        sequence = snn(x[:3].expand(8, *x[:3].shape).contiguous())
    torch.testing.assert_close(steps, sequence, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", available())
def test_reset_forgets_everything_and_networks_do_not_disturb_each_other(backend):
    ann, x = network("residual", torch.float32)
    snn, other = (converted(ann, x, backend=backend) for _ in range(2))
    first = cx.simulate(snn, x[:3], 8).outputs
    with torch.no_grad():
        other(x[:3])
        going_on = cx.simulate(snn, x[:3], 8, reset=False).outputs
    assert not torch.equal(first, going_on)  # without a reset the state goes on
    assert torch.equal(first, cx.simulate(snn, x[:3], 8).outputs)
    before = [s.backend.membrane_potential(s.neuron) for s in other.sites().values()]
    cx.reset(snn)
    after = [s.backend.membrane_potential(s.neuron) for s in other.sites().values()]
    assert all(a is b and a is not None for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("backend", available())
def test_a_changed_input_without_reset_raises(backend):
    ann, x = network("regression", torch.float32)
    snn = converted(ann, x, backend=backend)
    with torch.no_grad():
        snn(x[:3])
        with pytest.raises(cx.errors.StateError, match="reset"):
            snn(x[:2])


@pytest.mark.parametrize("backend", available())
def test_copies_and_state_dicts_carry_the_conversion(backend):
    ann, x = network("residual", torch.float32)
    snn = converted(ann, x, backend=backend)
    expected = cx.simulate(snn, x[:3], 8).outputs
    snn(x[:3].requires_grad_())  # a state with a history of gradients
    twin = copy.deepcopy(snn)
    assert torch.equal(expected, cx.simulate(twin, x[:3].detach(), 8).outputs)
    assert twin.conversion.table() == snn.conversion.table()
    fresh = converted(ann, x * 0.5, backend=backend)
    fresh.load_state_dict(snn.state_dict())
    assert torch.equal(expected, cx.simulate(fresh, x[:3].detach(), 8).outputs)


@pytest.mark.parametrize("name", ["residual", "gated", "tied"])
@pytest.mark.parametrize("backend", available())
def test_a_pickled_network_runs_the_same(name, backend, tmp_path):
    ann, x = network(name, torch.float32)
    snn = converted(ann, x, backend=backend)
    expected = cx.simulate(snn, x[:3], 8).outputs
    torch.save(snn, tmp_path / "snn.pt")
    loaded = torch.load(tmp_path / "snn.pt", weights_only=False)
    assert torch.equal(expected, cx.simulate(loaded, x[:3], 8).outputs)
    assert loaded.conversion.table() == snn.conversion.table()


def test_the_count_law_at_the_first_site():
    """Law 3: constant current z gives clamp(floor(T z + v_init), 0, T) spikes, here through a converted layer."""
    ann = nn.Sequential(nn.Linear(4, 50, dtype=torch.float64), nn.ReLU(), nn.Linear(50, 2, dtype=torch.float64))
    x = torch.randn(20, 4, dtype=torch.float64)
    for v_init in (0.0, 0.25, 0.5):
        for neuron in (cx.IF(v_init=v_init), cx.neurons.BurstIF(4, v_init=v_init)):
            snn = converted(ann, x, cx.Recipe(cx.Percentile(90.0), neuron, family=neuron.family))
            z = ann[0](x).detach() / next(iter(snn.conversion.thresholds.values()))
            rate = cx.simulate(snn, x, 13).firing_rate["1"]
            assert torch.equal((rate * 13).round(), torch.floor(13 * z + v_init).clamp(0, 13 * neuron.levels))


@pytest.mark.parametrize("normalizer", [cx.Percentile(99.0), cx.MeanSquaredError()], ids=["percentile", "least error"])
def test_spikes_of_a_burst_share_the_range_and_normalizers_know_all_levels(normalizer):
    """A step says as much as one spike of IF would, in max_spikes levels; a clipped ReLU is clipped as before."""
    ann, x = network("chain")
    whole = converted(ann, x, cx.Recipe(normalizer), T=20).conversion.thresholds
    snn = converted(ann, x, cx.Recipe(normalizer, cx.neurons.BurstIF(4), family="multi-level"), T=5)
    for key, threshold in snn.conversion.thresholds.items():
        assert torch.equal(4 * threshold, whole[key])
    assert snn.conversion.family == "multi-level"
    assert {row.emits for row in snn.conversion.table() if row.kind == "BurstIF"} == {"multi-level"}
    scaled = converted(ann, 3 * x, cx.Recipe(cx.Maximum(), cx.neurons.BurstIF(4), family="multi-level"))
    assert 4 * scaled.conversion.thresholds["5"] == 6


def test_a_broken_pool_breaks_the_law():
    """The laws can fail: stock pooling of spikes (method "instant") violates them at once."""
    ann, x = network("residual")
    snn = converted(ann, x, replace(PER_CHANNEL, max_pool="instant"))
    with pytest.raises(AssertionError):
        laws.assert_sites_exact(snn, (x[:3],), T=16)
    with pytest.raises(AssertionError):
        laws.assert_is_ann_of_rates(ann, snn, (x[:3],), T=16)


def _leaves(value):
    return tree_leaves(value)
