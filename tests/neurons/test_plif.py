"""PLIF: what it is before training, the gradient of its leak, and what training leaves in a converted network."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available, get_backend
from conversion_ext.neurons import LIF, PLIF, Neuron
from conversion_ext.types import Reset

BACKENDS = available()
RESETS = (Reset.SUBTRACT, Reset.ZERO)
X = torch.rand(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def spikes(name: str, spec: Neuron, x_seq: Tensor, neuron: nn.Module | None = None) -> Tensor:
    backend = get_backend(name)
    neuron = backend.neuron(spec) if neuron is None else neuron
    backend.reset(neuron)
    return backend.run(neuron.train(), x_seq, spec.v_init)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("reset", RESETS)
def test_before_training_it_is_if_or_lif(name, reset):
    x_seq = torch.randn(60, 8, 30) * 0.8 + 0.3
    assert torch.equal(spikes(name, PLIF(reset=reset), x_seq), spikes(name, cx.IF(reset=reset), x_seq))
    leaky = LIF(tau=4.0, decay_input=False, reset=reset, v_init=0.5)
    found, expected = (spikes(name, spec, x_seq) for spec in (PLIF(beta=0.75, reset=reset), leaky))
    assert expected.sum() > 100
    assert (found != expected).double().mean() < 1e-3  # SpikingJelly's nodes round in their own order


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("beta", [1.0, 0.75])
def test_the_gradient_of_the_leak_is_that_of_the_recursion(name, reset, beta):
    """Forward through time, one neuron after the other: dm = v + beta dv; ds = g(m - 1) dm; and dv by the reset."""
    x_seq = torch.randn(12, 5, dtype=torch.float64) + 0.3
    weight = torch.randn(12, 5, dtype=torch.float64)
    expected = 0.0
    for n in range(5):
        v, dv = 0.5, 0.0
        for t in range(12):
            m, dm = beta * v + float(x_seq[t, n]), v + beta * dv
            s = float(m >= 1)
            ds = dm / (1 + (torch.pi * (m - 1)) ** 2)
            v, dv = (m - s, dm - ds) if reset is Reset.SUBTRACT else (m * (1 - s), dm * (1 - s) - m * ds)
            expected += float(weight[t, n]) * ds
    neuron: Any = get_backend(name).neuron(PLIF(beta=beta, reset=reset)).double()
    (spikes(name, PLIF(beta=beta, reset=reset), x_seq, neuron) * weight).sum().backward()
    (parameter,) = neuron.parameters()
    own = name == "spikingjelly" and beta < 1  # it learns w, beta = 1 - sigmoid(w)
    scale = -beta * (1 - beta) if own else 1.0
    assert parameter.grad.item() == pytest.approx(scale * expected, rel=1e-5)
    assert expected != 0


def test_it_is_the_framework_that_learns():
    theirs = pytest.importorskip("spikingjelly.activation_based.neuron").ParametricLIFNode
    node: Any = get_backend("spikingjelly").neuron(PLIF(beta=0.8))
    assert isinstance(node, theirs)
    assert node.beta.item() == pytest.approx(0.8)
    assert not isinstance(get_backend("spikingjelly").neuron(PLIF()), theirs)
    leaky: Any = get_backend("snntorch").neuron(PLIF(beta=0.8))
    assert isinstance(leaky, pytest.importorskip("snntorch").Leaky)
    assert [n for n, _ in leaky.named_parameters()] == ["beta"]


@pytest.mark.parametrize("name", BACKENDS)
def test_beyond_an_end_it_counts_as_the_end_and_can_come_back(name):
    neuron: Any = get_backend(name).neuron(PLIF())
    x_seq = torch.randn(20, 4) + 0.3
    with torch.no_grad():
        neuron.beta.fill_(1.25)
    found = spikes(name, PLIF(), x_seq, neuron)
    assert torch.equal(found, spikes(name, cx.IF(), x_seq))
    found.sum().backward()
    assert neuron.beta.grad != 0


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 3)
    ).eval()  # fmt: skip


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("beta", [1.0, 0.9])
def test_what_is_learned_stays_in_the_converted_network(name, beta):
    default = cx.recipes.get("default")
    ann, T = network(), 6
    if beta == 1:
        plain = cx.convert(ann, X, T=T, backend=name, progress=False)
    snn = cx.convert(ann, X, recipe=replace(default, neuron=PLIF(beta=beta)), T=T, backend=name, progress=False)
    if beta == 1:
        assert torch.equal(cx.simulate(plain, X, T).outputs, cx.simulate(snn, X, T).outputs)
    before = cx.simulate(snn, X, T).outputs
    learned = [p for site in snn.sites().values() for p in site.neuron.parameters()]
    assert len(learned) == 2
    snn.train()
    cx.reset(snn)
    torch.stack([snn(X) for _ in range(T)]).square().mean().backward()
    for parameter in learned:
        assert parameter.grad is not None
        assert parameter.grad != 0
        with torch.no_grad():
            parameter.add_(-0.3 if beta == 1 or name != "spikingjelly" else 2.0)  # a leak of 0.3 or 0.4
    snn.eval()
    after = cx.simulate(snn, X, T)
    assert not torch.equal(after.outputs, before)
    cx.reset(snn)
    with torch.no_grad():
        stepped = torch.stack([snn(X) for _ in range(T)]).cumsum(0) / torch.arange(1, T + 1).view(-1, 1, 1)
    means = cx.simulate(snn, X, T, readout=cx.readouts.MeanOutput()).outputs
    torch.testing.assert_close(means, stepped)  # the engine and the framework's own forward
    assert torch.equal(cx.simulate(copy.deepcopy(snn), X, T).outputs, after.outputs)
    stream = io.BytesIO()
    torch.save(snn, stream)
    stream.seek(0)
    assert torch.equal(cx.simulate(torch.load(stream, weights_only=False), X, T).outputs, after.outputs)


@pytest.mark.parametrize("bad", [lambda: PLIF(beta=0), lambda: PLIF(beta=1.1), lambda: PLIF(reset="zero")])
def test_bad_values_are_refused(bad):
    with pytest.raises(ValueError, match=r"PLIF\(\w+="):
        bad()
