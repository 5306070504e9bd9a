"""Block synchrony: sites take the mean of K steps as their current; K = 1 is the step loop, K = T the twin."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.capture.preparation import prepare
from conversion_ext.network import site as site_module
from conversion_ext.network.depths import depths
from conversion_ext.network.site import SpikingSite
from tests import laws, zoo
from tests.live import live

RECIPE = cx.Recipe(cx.Percentile(99.0, granularity=cx.PerChannel()))


def network(name, backend="reference", recipe=RECIPE, dtype=torch.float64, **options):
    ann, x = live(name, samples=6, seed=5, dtype=dtype)
    return ann, cx.convert(ann, x, recipe=recipe, backend=backend, progress=False, **options), x[:3]


@pytest.mark.parametrize("name", zoo.SMALL)
def test_one_step_is_the_step_loop(name):
    _, snn, x = network(name, dtype=torch.float32)
    found = cx.simulate(snn, x, 6, block=1, time_chunk=1)
    cx.reset(snn)
    totals = None
    with torch.no_grad():
        for t in range(6):
            now = tree_leaves(snn(x))
            totals = [a + b for a, b in zip(totals, now, strict=True)] if totals else now
            for total, output in zip(totals, tree_leaves(found.outputs), strict=True):
                assert torch.equal(total / (t + 1), output[t])


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "unfolded"])
@pytest.mark.parametrize("name", zoo.SMALL)
def test_one_block_is_the_rounded_network(name, fold):
    """K = T against the ANN's own graph with every activation rounded by the closed form; and that is the twin."""
    ann, snn, x = network(name, fold=fold)
    for T in (1, 4, 7):
        expected = tree_leaves(laws.Rounded(prepare(ann, (x,), (), ()), snn, T).run(x))
        found = tree_leaves(cx.simulate(snn, x, T, block=T).output)
        for a, b, c in zip(found, expected, tree_leaves(cx.twin(snn, T)(x)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("K", [2, 4])
@pytest.mark.parametrize("name", zoo.SMALL)
def test_sites_conserve_at_block_ends(name, K):
    ann, snn, x = network(name)
    laws.assert_sites_exact(snn, (x,), T=16, block=K)
    laws.assert_is_ann_of_rates(ann, snn, (x,), T=16, block=K)


@pytest.mark.parametrize("recipe", ["default", "default-signed"])
@pytest.mark.parametrize("backend", available())
def test_backends_agree_and_report_single_spikes(backend, recipe):
    _, ours, x = network("residual", recipe=recipe, dtype=torch.float32)
    _, theirs, _ = network("residual", backend, recipe, torch.float32)
    expected = laws.spikes(ours, x, 8, block=4)
    result = cx.simulate(copy.deepcopy(theirs), x, 8, block=4, record=("spikes",))
    for key, spikes in expected.items():
        assert torch.equal(result.recorded["spikes"][key], spikes)
        assert set(spikes.unique().tolist()) <= {-1.0, 0.0, 1.0}
        torch.testing.assert_close(result.firing_rate[key], spikes.abs().mean(0))
    if recipe == "default-signed":
        assert any(bool((spikes < 0).any()) for spikes in expected.values())


def test_pieces_of_a_block_agree(monkeypatch):
    _, snn, x = network("residual")
    whole = cx.simulate(snn, x, 14, block=7, record=("spikes",))
    monkeypatch.setattr(site_module, "PIECE", 4000)  # blocks in pieces of 1 to 6 steps, as sites are large or small
    pieces = cx.simulate(snn, x, 14, block=7, record=("spikes",))
    assert torch.equal(whole.outputs, pieces.outputs)
    for key, spikes in whole.recorded["spikes"].items():
        assert torch.equal(spikes, pieces.recorded["spikes"][key])


def test_chunks_and_sequences_agree():
    _, snn, x = network("inception")
    whole = cx.simulate(snn, x, 12, block=3, time_chunk=12)
    pieces = cx.simulate(snn, x, 12, block=3, time_chunk=3)
    flicker = torch.tensor([-1.0, 0, 1], dtype=x.dtype).repeat(4).view(12, 1, 1, 1, 1)
    frames = cx.simulate(snn, x_seq=x + flicker, block=3)
    for other in (pieces, frames):  # only the mean of a block counts
        torch.testing.assert_close(whole.outputs, other.outputs, rtol=1e-9, atol=1e-9)
    assert whole.at == (3, 6, 9, 12)
    late = cx.simulate(snn, x, 12, block=3, readout=cx.readouts.MeanOutput(start=4), at=[6])
    expected = (2 * whole.outputs[1] - whole.outputs[0]) * 3  # the readout sees three steps of the block's current
    torch.testing.assert_close(late.output, (expected * 2 / 3) / 2, rtol=1e-9, atol=1e-9)


def test_weight_layers_see_a_kth_of_the_steps():
    _, snn, x = network("residual")
    rows: dict[str, int] = {}

    def count(module, args, output):
        rows[module] = rows.get(module, 0) + len(args[0])

    for module in snn.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    cx.simulate(snn, x, 12, block=4)
    assert sorted(rows.values())[0] == len(x)  # the first layer, once
    assert set(rows.values()) == {len(x), 3 * len(x)}


def schedule(snn, T, K, sequence):
    """Return the step in which the last site ends, found by playing the waiting step by step on the graph."""
    nodes = list(snn.body.graph.nodes)
    is_site = {n: n.op == "call_module" and isinstance(snn.body.get_submodule(n.target), SpikingSite) for n in nodes}
    done = dict.fromkeys(nodes, 0)  # steps that a site has made
    for now in range(1, 10_000):
        ready: dict = {}  # steps of input that have come out of a node by now
        for node in nodes:
            if not node.all_input_nodes:
                ready[node] = min(now, T) if sequence else T
                continue
            given = min(ready[source] for source in node.all_input_nodes if source.name != "steps")
            if is_site[node]:
                block = done[node] // K  # its next step belongs to this block, of which every input must be there
                done[node] += done[node] < T and given >= (block + 1) * K
                ready[node] = done[node]
            else:
                ready[node] = given
        if all(done[node] == T for node in nodes if is_site[node]):
            return now
    raise AssertionError


@pytest.mark.parametrize("sequence", [False, True], ids=["constant", "frames"])
@pytest.mark.parametrize("name", ["regression", "residual", "inception", "dense"])
def test_latency_is_what_the_schedule_needs(name, sequence):
    _, snn, x = network(name)
    assert max(depths(snn.body).values()) == {"regression": 2, "residual": 5, "inception": 2, "dense": 4}[name]
    for K in (1, 2, 4):
        given = {"x_seq": x.expand(8, *x.shape)} if sequence else {"x": x}
        result = cx.simulate(snn, T=8, block=K, **given)
        assert result.total_steps == 8
        assert result.latency_steps == schedule(snn, 8, K, sequence)


def test_random_codes_are_averaged():
    recipe = cx.Recipe(encoder=cx.encoders.Poisson())
    _, snn, x = network("regression", recipe=recipe)
    x = x.abs() / x.abs().max()
    frames = recipe.encoder(x.expand(8, *x.shape))
    found, expected = cx.simulate(snn, x, 8, block=4), cx.simulate(snn, x_seq=frames, block=4)
    assert torch.equal(found.outputs, expected.outputs)
    assert found.latency_steps == expected.latency_steps == 8 + 2 * 3


def test_evaluation_in_blocks_is_the_simulation():
    _, snn, x = network("residual")
    target = torch.arange(3)
    found = cx.evaluate(snn, (x, target), 8, block=4, progress=False)
    outputs = cx.simulate(snn, x, 8, block=4).outputs
    assert found.at == (4, 8)
    assert found.accuracy.tolist() == [float(a) for a in (outputs.argmax(2) == target).double().mean(1)]
    assert (found.total_steps, found.latency_steps) == (8, 8 + 3 * 4)


def test_what_does_not_fit_is_refused():
    _, snn, x = network("regression")
    for bad in (3, 0, 2.0, 16):
        with pytest.raises(ValueError, match="divides T=8"):
            cx.simulate(snn, x, 8, block=bad)
    with pytest.raises(ValueError, match="single steps"):
        cx.simulate(snn, x, 8, block=4, record=("potential",))
    with pytest.raises(ValueError, match="multiples of block=4"):
        cx.simulate(snn, x, 8, block=4, at=[2, 8])
    _, snn, x = network("gated", recipe=cx.Recipe(cx.Percentile(99.0), softmax="poisson"))
    with pytest.raises(ValueError, match="use block=1"):
        cx.simulate(snn, x, 8, block=4)
    _, snn, x = network("regression", recipe=cx.Recipe(readout=cx.readouts.SpikeCount()))
    with pytest.raises(ValueError, match="reads single spikes"):
        cx.simulate(snn, x, 8, block=4)
