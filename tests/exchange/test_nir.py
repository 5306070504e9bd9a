"""NIR: exact in our own reader after HDF5, and as exact as each of the packages that read it allows."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.errors import UnsupportedError
from conversion_ext.exchange import from_nir, to_nir
from conversion_ext.integer import integers
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.neurons import LIF, PLIF, SignedIF
from tests.benchmarks.nir import compare
from tests.exchange.readers import INSTALLED, networks

nir = pytest.importorskip("nir")
pytest.importorskip("nirtorch")
T = 16
HARD = cx.Recipe(neuron=cx.IF(0.0, cx.Reset.ZERO))
BRANCHES = ("sinabs", "norse")  # refuse sums of two branches


def images(n: int = 20) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def converted(ann: nn.Module | str, **options: Any) -> SpikingNetwork:
    if isinstance(ann, str):
        torch.manual_seed(0)
        ann = networks()[ann]
    options = {"progress": False, "backend": "reference", **options}
    return cx.convert(ann.eval(), images(64), **options)


def assert_equal(first: SpikingNetwork, second: SpikingNetwork, x: Tensor) -> None:
    ours, theirs = (cx.simulate(snn, x, T=T, record=("spikes",)) for snn in (first, second))
    assert torch.equal(ours.outputs, theirs.outputs)
    assert list(ours.recorded["spikes"]) == list(theirs.recorded["spikes"])
    for key, spikes in ours.recorded["spikes"].items():
        assert torch.equal(spikes, theirs.recorded["spikes"][key])
        assert float(spikes.mean()) > 0


@pytest.mark.parametrize("backend", ["reference", "spikingjelly", "snntorch"])
@pytest.mark.parametrize("name", networks())
def test_our_reader_is_exact_after_hdf5(name: str, backend: str, tmp_path: Path) -> None:
    snn = converted(name, recipe="default", T=T)
    nir.write(str(tmp_path / "a.nir"), to_nir(snn))
    again = from_nir(tmp_path / "a.nir", backend=backend)
    assert_equal(snn, again, images())
    assert again.conversion.recipe == snn.conversion.recipe
    assert again.conversion.backend == backend
    cx.twin(again, T)(images())


@pytest.mark.parametrize(
    "neuron",
    [
        cx.IF(0.25), cx.IF(0.0, cx.Reset.ZERO), cx.IF(floor=-1.0),
        cx.IF(0.0, cx.Reset.ZERO, floor=-0.5, strict=True), LIF(tau=4.0), LIF(tau=4.0, decay_input=False),
        PLIF(beta=0.875), PLIF(),
        LIF(tau=3.0, reset=cx.Reset.SUBTRACT),
    ],
    ids=repr,
)  # fmt: skip
def test_neurons(neuron: Any, tmp_path: Path) -> None:
    snn = converted("MLP", recipe=cx.Recipe(neuron=neuron))
    for site in snn.sites().values():
        site.threshold.mul_(1)  # folded already; currents are large enough for leaky neurons to fire
    nir.write(str(tmp_path / "a.nir"), to_nir(snn))
    again = from_nir(tmp_path / "a.nir", backend="reference")
    x = 8 * images()
    ours, theirs = cx.simulate(snn, x, T=T), cx.simulate(again, x, T=T)
    torch.testing.assert_close(ours.output, theirs.output, rtol=1e-5, atol=1e-6)
    if isinstance(neuron, cx.IF):
        assert all(replace(site.spec, v_init=neuron.v_init) == neuron for site in again.sites().values())
    assert min(float(rate.mean()) for rate in ours.firing_rate.values()) > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", networks())
@pytest.mark.parametrize("reader", ["spikingjelly", "snntorch", "norse"])
def test_rueckauer2017_zero_is_exact_in_other_packages(reader: str, name: str) -> None:
    if reader not in INSTALLED:
        pytest.skip(f"{reader} is not installed")
    snn = converted(name, recipe="rueckauer2017_zero")
    if reader in BRANCHES and name == "ResNet":
        with pytest.raises(UnsupportedError, match=r"this reader runs it before"):
            to_nir(snn, reader=reader)
        return
    wrong, same, output = compare(snn, reader, to_nir(snn, reader=reader), images(), T)
    assert same == 1
    assert max(wrong) < 1e-3  # rounding: not one spike differs on the machine where this was written
    torch.testing.assert_close(output, cx.simulate(snn, images(), T=T).output, rtol=0, atol=1e-2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("sinabs" not in INSTALLED, reason="sinabs is not installed")
@pytest.mark.parametrize("name", ["average-pool CNN", "MLP"])
def test_initial_potentials_in_biases_make_counts_right_in_sinabs(name: str) -> None:
    """sinabs resets by subtraction: with v_init / T in the biases its outputs are nearer, for all images together."""
    snn = converted(name)
    reference = cx.simulate(snn, images(), T=T).output
    lost, kept = (compare(snn, "sinabs", to_nir(snn, reader="sinabs", T=steps), images(), T) for steps in (None, T))
    assert (kept[2] - reference).norm() < (lost[2] - reference).norm()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("spikingjelly" not in INSTALLED, reason="SpikingJelly is not installed")
def test_grouped_convolutions_are_written_dense_for_spikingjelly(tmp_path: Path) -> None:
    ann = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    )
    snn = converted(ann, recipe=HARD)
    wrong, same, _ = compare(snn, "spikingjelly", to_nir(snn, reader="spikingjelly"), images(), T)
    assert same == 1
    assert max(wrong) < 1e-3
    nir.write(str(tmp_path / "a.nir"), to_nir(snn))
    assert_equal(snn, from_nir(tmp_path / "a.nir", backend="reference"), images())


def test_spinnaker2_gets_what_its_rules_ask_for() -> None:
    """Sum pools without padding, thresholds one ulp below 1, initial potentials in biases, no scales, no metadata."""
    graph = to_nir(converted("average-pool CNN"), reader="spinnaker2", T=T)
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    assert "SumPool2d" in kinds
    assert not {"AvgPool2d", "Scale"} & set(kinds)
    neurons = [node for node in graph.nodes.values() if isinstance(node, nir.IF)]
    assert all(np.all(node.v_threshold == np.nextafter(np.float32(1), np.float32(0))) for node in neurons)
    assert all("v_init" not in node.metadata for node in neurons)
    plain = to_nir(converted("average-pool CNN"), reader="spinnaker2")
    first = next(name for name, node in graph.nodes.items() if isinstance(node, nir.Conv2d))
    np.testing.assert_allclose(graph.nodes[first].bias - plain.nodes[first].bias, 0.5 / T, rtol=0, atol=1e-6)


def test_thresholds_are_moved_by_an_ulp_where_a_reader_compares_otherwise() -> None:
    one = np.float32(1)
    for strict, reader, sign in (
        (False, "norse", -1),
        (True, "norse", 0),
        (False, "spikingjelly", 0),
        (True, "sinabs", 1),
    ):
        graph = to_nir(converted("MLP", recipe=cx.Recipe(neuron=cx.IF(0.0, strict=strict))), reader=reader)
        node = next(node for node in graph.nodes.values() if isinstance(node, nir.IF))
        expected = one if sign == 0 else np.nextafter(one, np.float32(1 + sign))
        assert np.all(node.v_threshold == expected), (strict, reader)


def test_nothing_stands_behind_output_neurons_for_others() -> None:
    recipe = cx.Recipe(neuron=cx.IF(0.0), readout=cx.readouts.SpikeCount())
    written = {reader: to_nir(converted("MLP", recipe=recipe), reader=reader) for reader in (None, "sinabs")}
    last = {reader: {a for a, b in graph.edges if b == "output"} for reader, graph in written.items()}
    assert [type(written[reader].nodes[name]).__name__ for reader, (name,) in last.items()] == ["Scale", "IF"]


def test_a_mean_over_space_and_functions() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.b(torch.relu(self.a(x))))
            return self.head(x.mean((2, 3)))

    snn = converted(Net())
    again = from_nir(to_nir(snn), backend="reference")
    ours, theirs = (cx.simulate(each, images(), T=T) for each in (snn, again))
    torch.testing.assert_close(ours.output, theirs.output, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("ann", "place"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)), "MaxPool"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Sigmoid(), nn.Linear(8, 5)), "Differential"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 5), nn.Softmax(1)), "Differential"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LeakyReLU(), nn.Linear(8, 5)), "Differential"),
    ],
)  # fmt: skip
def test_what_nir_cannot_say_is_refused_by_name(ann: nn.Module, place: str) -> None:
    snn = cx.convert(ann.eval(), images(64), progress=False, backend="reference")
    with pytest.raises(UnsupportedError, match=f"NIR has no node for .*{place}") as caught:
        to_nir(snn)
    assert caught.value.problems


def test_other_refusals() -> None:
    snn = converted("MLP")
    with pytest.raises(UnsupportedError, match=r"NIR has no neuron like SignedIF"):
        to_nir(converted("MLP", recipe=cx.Recipe(neuron=SignedIF(), family="signed")))
    with pytest.raises(ValueError, match=r"convert with fold=True"):
        to_nir(converted("MLP", fold=False))
    with pytest.raises(ValueError, match=r"NIR has no rounding"):
        to_nir(integers(snn, images()))
    with pytest.raises(LookupError, match=r"reader='nengo': there are spikingjelly"):
        to_nir(snn, reader="nengo")
    with pytest.raises(ValueError, match=r"T=0"):
        to_nir(snn, T=0)
    with pytest.raises(TypeError, match=r"pass what conversion_ext.convert returned"):
        to_nir(nn.ReLU())
    with pytest.raises(TypeError, match=r"nir.NIRGraph or its file is read, not a int"):
        from_nir(3)


def graph_of(*nodes: Any) -> Any:
    return nir.NIRGraph.from_list(*nodes)


def test_graphs_of_others_follow_nirs_equations() -> None:
    """IF with its own threshold and resistance, hard reset to a potential of its own: compared with a loop in numpy."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(6, 4)).astype(np.float32), np.full(6, 0.2, np.float32)
    threshold, rest = np.full(6, 2.0, np.float32), np.full(6, -0.5, np.float32)
    made = graph_of(nir.Affine(weight, bias), nir.IF(np.full(6, 0.25, np.float32), threshold, rest))
    x = rng.normal(size=(3, 4)).astype(np.float32) * 4
    found = cx.simulate(from_nir(made, dt=1.0), torch.from_numpy(x), T=12, record=("spikes",))
    v, expected = np.tile(rest, (3, 1)), []
    for _ in range(12):
        v = v + 0.25 * (x @ weight.T + bias)
        fired = v >= threshold
        v = np.where(fired, rest, v)
        expected.append(fired)
    (spikes,) = found.recorded["spikes"].values()
    assert np.array_equal(spikes.numpy() > 0, np.array(expected))
    assert np.array(expected).any()


def test_leaky_neurons_of_others() -> None:
    dt, tau_syn, tau_mem = 1e-3, 5e-3, 2e-2
    ones = np.ones(3, np.float32)
    made = graph_of(
        nir.Linear(np.eye(3, dtype=np.float32) * 30),
        nir.CubaLIF(ones * tau_syn, ones * tau_mem, ones, ones * 0, ones, ones * 0, w_in=ones * 2),
    )
    x = np.array([[0.2, 0.5, 1.0]], np.float32)
    found = cx.simulate(from_nir(made, dt=dt), torch.from_numpy(x), T=40, record=("spikes",))
    current, v, expected = np.zeros((1, 3)), np.zeros((1, 3)), []
    for _ in range(40):
        current = current + dt / tau_syn * (2 * 30 * x - current)
        v = v + dt / tau_mem * (current - v)
        fired = v >= 1
        v = np.where(fired, 0, v)
        expected.append(fired)
    (spikes,) = found.recorded["spikes"].values()
    assert np.array_equal(spikes.numpy() > 0, np.array(expected))
    assert np.array(expected).any()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("spikingjelly" not in INSTALLED, reason="SpikingJelly is not installed")
def test_a_network_that_another_tool_wrote(tmp_path: Path) -> None:
    """What SpikingJelly exports gives here what it gives there, step by step."""
    base = "spikingjelly.activation_based"
    neuron, functional = (importlib.import_module(f"{base}.{name}") for name in ("neuron", "functional"))
    export = importlib.import_module(f"{base}.nir_exchange").export_to_nir
    torch.manual_seed(0)
    first, last = (nn.Conv2d(1, 4, 3), neuron.IFNode(), nn.Flatten()), (neuron.LIFNode(tau=3.0), nn.Linear(8, 3))
    layers = (*first, nn.Linear(144, 8), *last)
    net, x = nn.Sequential(*layers).eval(), 6 * images()
    net[3].weight.data.mul_(5)  # or nothing reaches the leaky neurons' threshold
    export(net, x, tmp_path / "a.nir")
    functional.reset_net(net)
    with torch.no_grad():
        expected = torch.stack([net(x) for _ in range(T)])
    read = from_nir(tmp_path / "a.nir")
    found = cx.simulate(read, x, T=T, readout=None)
    counted = found.outputs * torch.arange(1, T + 1).view(-1, 1, 1)
    torch.testing.assert_close(counted, expected.cumsum(0), rtol=1e-4, atol=1e-4)
    assert min(float(rate.mean()) for rate in found.firing_rate.values()) > 0


def layers() -> tuple[nn.Linear, nn.Linear, Tensor]:
    torch.manual_seed(0)
    first, last = nn.Linear(16, 12), nn.Linear(12, 5)
    first.weight.data.mul_(4)
    last.weight.data.mul_(4)
    return first, last, torch.rand(10, 16)


def spikes_here(graph: Any, x: Tensor, **options: Any) -> list[Tensor]:
    spikes = cx.simulate(from_nir(graph, **options), x, T=T, record=("spikes",)).recorded["spikes"]
    assert min(float(s.mean()) for s in spikes.values()) > 0.01
    return list(spikes.values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("sinabs" not in INSTALLED, reason="sinabs is not installed")
@pytest.mark.parametrize("reset", list(cx.Reset))
def test_a_network_that_sinabs_wrote(reset: cx.Reset) -> None:
    activation, kinds, tool = (importlib.import_module(f"sinabs.{name}") for name in ("activation", "layers", "nir"))
    first, last, x = layers()
    rule = activation.MembraneReset() if reset is cx.Reset.ZERO else activation.MembraneSubtract()
    neurons = [
        kinds.IAFSqueeze(batch_size=len(x), spike_fn=activation.SingleSpike, reset_fn=rule, min_v_mem=None)
        for _ in range(2)
    ]
    net = nn.Sequential(first, neurons[0], last, neurons[1])
    graph = tool.to_nir(net, torch.rand(len(x), 16))
    for layer in neurons:
        layer.reset_states()
    with torch.no_grad():
        expected = net(x.repeat_interleave(T, 0)).unflatten(0, (len(x), T)).transpose(0, 1)
    assert torch.equal(spikes_here(graph, x, reset=reset)[1], expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("snntorch" not in INSTALLED, reason="snnTorch is not installed")
def test_a_network_that_snntorch_wrote() -> None:
    snntorch, tool = (importlib.import_module(name) for name in ("snntorch", "snntorch.export_nir"))
    first, last, x = layers()
    neurons = [
        snntorch.Leaky(beta=torch.full((n,), beta), threshold=torch.ones(n), reset_mechanism="zero", init_hidden=True)
        for n, beta in ((12, 0.9), (5, 0.8))
    ]
    net = nn.Sequential(first, neurons[0], last, neurons[1])
    graph = tool.export_to_nir(net, x[0])
    for layer in neurons:
        layer.reset_mem()
    with torch.no_grad():
        expected = torch.stack([net(x) for _ in range(T)])
    assert float((spikes_here(graph, x)[1] != expected).float().mean()) < 1e-3  # its tau is rounded


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("norse" not in INSTALLED, reason="norse is not installed")
def test_networks_that_norse_wrote() -> None:
    """Integrate and fire as it is; leaky neurons with the step that its time constants were multiplied by."""
    norse = importlib.import_module("norse.torch")
    leaky = norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.tensor(100.0)))
    for cell, options in ((norse.IAFCell(), {}), (leaky, {"dt": 1e-6})):
        first, last, x = layers()
        net = norse.SequentialState(first, cell, last)
        graph, state, outputs = norse.to_nir(net, x, dt=1e-3), None, []
        with torch.no_grad():
            for _ in range(T):
                y, state = net(x, state)
                outputs.append(y)
        found = cx.simulate(from_nir(graph, **options), x, T=T)
        counted = found.outputs * torch.arange(1, T + 1).view(-1, 1, 1)
        torch.testing.assert_close(counted, torch.stack(outputs).cumsum(0), rtol=1e-4, atol=1e-4)
        assert min(float(rate.mean()) for rate in found.firing_rate.values()) > 0.01
    with pytest.raises(UnsupportedError, match=r"a time constant of 1e-05 s, no longer than the step of 0.001 s"):
        from_nir(graph, dt=1e-3)


def test_graphs_that_cannot_be_read_name_the_node() -> None:
    ones = np.ones(4, np.float32)
    with pytest.raises(UnsupportedError, match=r"no form of a Threshold"):
        from_nir(graph_of(nir.Affine(np.eye(4, dtype=np.float32), ones), nir.Threshold(ones)))
    loop = nir.NIRGraph(
        {"input": nir.Input({"input": np.array([4])}), "a": nir.IF(ones, ones), "w": nir.Linear(np.diag(ones)),
         "output": nir.Output({"output": np.array([4])})},
        [("input", "a"), ("a", "w"), ("w", "a"), ("a", "output")],
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match=r"form a loop"):
        from_nir(loop)
    with pytest.raises(UnsupportedError, match=r"resets to or above its threshold"):
        from_nir(graph_of(nir.IF(ones, ones, ones)))


def test_copies_become_nodes_of_their_own_that_send_the_same(tmp_path: Path) -> None:
    snn = converted("MLP", recipe="default-copies", T=T)
    written = to_nir(snn)
    neurons = [node for node in written.nodes.values() if isinstance(node, nir.IF)]
    assert len(neurons) == 2 * len(snn.sites())
    assert sum(node.v_threshold.size for node in neurons) == sum(snn.conversion.neurons.values())
    nir.write(str(tmp_path / "a.nir"), written)
    again = from_nir(tmp_path / "a.nir", backend="reference")
    ours, theirs = (cx.simulate(network, images(), T=T) for network in (snn, again))
    torch.testing.assert_close(ours.outputs, theirs.outputs)
    torch.testing.assert_close(ours.spikes_per_sample, theirs.spikes_per_sample)
    with pytest.raises(UnsupportedError, match="potentials of their own"):
        to_nir(snn, reader="spikingjelly")


@pytest.mark.parametrize("recipe", ["default-lookahead", "default-weighted"])
def test_look_ahead_is_refused(recipe: str) -> None:
    with pytest.raises(UnsupportedError, match="ahead|WeightedIF"):
        to_nir(converted("MLP", recipe=recipe, T=4))
