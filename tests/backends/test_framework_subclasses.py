"""Tools of snnTorch and SpikingJelly on converted networks: resets, hooks, and NeuroBench's measures."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx

pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data")
T = 8
X = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FRAMEWORKS = ("snntorch", "spikingjelly")


def converted(backend: str, seed: int = 0, **options: Any) -> Any:
    pytest.importorskip(backend)
    torch.manual_seed(seed)
    ann = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 5)
    )
    return cx.convert(ann.eval(), X, backend=backend, progress=False, **options)


def loop(snn: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack([snn(x) for _ in range(T)])


def test_snntorch_resets_exactly_the_network_it_is_given():
    utils = pytest.importorskip("snntorch.utils")
    first, second = converted("snntorch"), converted("snntorch", 1)
    fresh = [loop(snn, X[:4]) for snn in (first, second)]
    for reset in (utils.reset, lambda net: net.reset(), cx.reset):
        for snn in (first, second):
            cx.reset(snn)
            loop(snn, X[4:8])
        reset(first)
        assert torch.equal(loop(first, X[:4]), fresh[0])
        assert not torch.equal(loop(second, X[4:8]), fresh[1])  # it went on
        assert all(site.potential is not None for site in second.sites().values())
    utils.reset(nn.Sequential(nn.Linear(1, 1)))  # another network
    assert all(site.potential is not None for site in first.sites().values())


def test_a_network_for_snntorch_is_copied_and_pickled():
    snn = converted("snntorch")
    expected = cx.simulate(snn, X[:4], T).outputs
    for other in (copy.deepcopy(snn), pickle.loads(pickle.dumps(snn))):
        assert type(other) is type(snn)
        assert torch.equal(cx.simulate(other, X[:4], T).outputs, expected)


@pytest.mark.parametrize("backend", FRAMEWORKS)
def test_hooks_on_neurons_see_every_spike(backend):
    snn = converted(backend)
    expected = cx.simulate(snn, X[:4], T, record=("spikes",))
    seen: list[Tensor] = []
    site = next(iter(snn.sites().values()))
    handle = site.neuron.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    found = cx.simulate(snn, X[:4], T)
    spikes = expected.recorded["spikes"][site.key]
    assert torch.equal(torch.cat([s.reshape(-1, *spikes.shape[1:]) for s in seen]), spikes)
    assert torch.equal(found.outputs, expected.outputs)
    for key, rate in expected.firing_rate.items():
        assert torch.equal(found.firing_rate[key], rate)
    seen.clear()
    cx.reset(snn)
    loop(snn, X[:4])
    assert torch.equal(torch.stack([s.reshape(spikes.shape[1:]) for s in seen]), spikes)
    seen.clear()
    handle.remove()
    cx.simulate(snn, X[:4], T)
    assert not seen


@pytest.mark.parametrize("backend", FRAMEWORKS)
def test_spikes_and_potential_for_tools_of_snntorch(backend):
    pytest.importorskip("snntorch")
    snn = converted(backend)
    net = snn.as_snntorch()
    total = 0.0
    cx.reset(snn)
    for current in loop(snn, X[:2]):  # a batch of two is no pair of spikes and potential
        spikes, potential = net(X[:2])
        total = total + current
        torch.testing.assert_close(spikes, current)
        torch.testing.assert_close(potential, total)
    net.reset()
    cx.reset(snn)
    torch.testing.assert_close(net(X[:2])[1], snn(X[:2]))  # from the start again
    assert snn.conversion.backend == backend


@pytest.mark.parametrize("backend", FRAMEWORKS)
def test_neurobench_measures_what_we_measure(backend):
    pytest.importorskip("snntorch")
    models = pytest.importorskip("neurobench.models")
    workload = pytest.importorskip("neurobench.metrics.workload")
    snn = converted(backend)
    model = models.SNNTorchModel(snn.as_snntorch())
    model.register_hooks()
    frames = X[:6].unsqueeze(1).expand(6, T, 3, 8, 8)
    outputs = model(frames)
    run, count = cx.simulate(snn, X[:6], T), cx.synops(snn, X[:6], T)
    torch.testing.assert_close(outputs.mean(1), run.output)
    data = (frames, run.output.argmax(1))
    assert (outputs.sum(1).argmax(1) == data[1]).all()
    sparsity, updates, operations = (
        getattr(workload, name)()(model, outputs, data)
        for name in ("ActivationSparsity", "MembraneUpdates", "SynapticOperations")
    )
    rates = torch.cat([rate.flatten() for rate in run.firing_rate.values()])
    assert count.synops > 100  # of spikes, which there are
    assert 0.05 < float(rates.double().mean()) < 0.9
    assert sparsity == pytest.approx(1 - float(rates.double().mean()))
    assert updates == pytest.approx(count.updates)
    assert operations["Effective_ACs"] == pytest.approx(count.synops)
    assert operations["Effective_MACs"] == pytest.approx(T * count.analog_macs)  # it runs the image's layer every step
    model.cleanup_hooks()
