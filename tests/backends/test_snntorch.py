"""Our snnTorch neurons in the hands of snnTorch users."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conversion_ext.backends import get_backend
from conversion_ext.neurons import IF, Neuron, SignedEncoder, SignedIF
from conversion_ext.types import Reset

pytest.importorskip("snntorch")
import snntorch
from snntorch import surrogate, utils

SPECS = (IF(), IF(reset=Reset.ZERO), SignedIF(), SignedEncoder())
backend = get_backend("snntorch")


@pytest.fixture(params=SPECS, ids=repr)
def spec(request: pytest.FixtureRequest) -> Neuron:
    return request.param


def network(spec: Neuron) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), backend.neuron(spec), nn.Linear(6, 4), backend.neuron(spec))


def loop(net: nn.Module, x_seq: Tensor) -> Tensor:
    return torch.stack([net(x) for x in x_seq])


def test_runs_in_an_ordinary_time_loop(spec: Neuron) -> None:
    net, x_seq = network(spec), torch.randn(15, 3, 5)
    assert all(isinstance(m, snntorch.Leaky) for m in (net[1], net[3]))
    spikes = backend.run(net[1], torch.stack([net[0](x) for x in x_seq]), spec.v_init)
    expected = backend.run(net[3], torch.stack([net[2](s) for s in spikes]), spec.v_init)
    assert torch.equal(loop(copy.deepcopy(net), x_seq), expected)


def test_potentials_recorded_step_by_step_stay(spec: Neuron) -> None:
    neuron: Any = backend.neuron(spec)
    records, copies = [], []
    with torch.no_grad():
        for x in torch.randn(10, 3, 5):
            neuron(x)
            records.append(neuron.mem)
            copies.append(neuron.mem.clone())
    assert torch.equal(torch.stack(records), torch.stack(copies))
    assert not torch.equal(records[0], records[-1])


def test_is_in_no_list_of_the_process_and_can_be_collected(spec: Neuron) -> None:
    before = list(snntorch.SpikingNeuron.instances)
    neuron = backend.neuron(spec)
    neuron(torch.randn(2, 3))
    gone = weakref.ref(neuron)
    assert snntorch.SpikingNeuron.instances == before
    del neuron
    gc.collect()
    assert gone() is None


def test_snntorch_reset_of_another_network_leaves_it_alone(spec: Neuron) -> None:
    x_seq = torch.randn(20, 3, 5)
    expected = loop(network(spec), x_seq)
    net: Any = network(spec)
    stock: Any = nn.Sequential(snntorch.Leaky(beta=0.9, init_hidden=True))
    first = loop(net, x_seq[:10])
    stock(torch.ones(2, 3))
    for other in (stock, network(spec)):
        utils.reset(other)
    assert stock[0].mem.eq(0).all()
    assert torch.equal(torch.cat([first, loop(net, x_seq[10:])]), expected)
    snntorch.SpikingNeuron.instances.remove(stock[0])


def test_reset_mem_resets_one_neuron(spec: Neuron) -> None:
    net, x_seq = network(spec), torch.randn(20, 3, 5)
    first = loop(net, x_seq)
    for module in net.modules():
        if isinstance(module, snntorch.Leaky):
            assert module.reset_mem().numel() == 0
            assert all(getattr(module, name) is None for name in spec.state[1:])
    assert torch.equal(loop(net, x_seq), first)


def test_a_surrogate_of_the_user_changes_gradients_and_no_spike(spec: Neuron) -> None:
    x_seq, grads, spikes = torch.randn(20, 3, 5, dtype=torch.float64), [], []
    for spike_grad in (surrogate.atan(), surrogate.fast_sigmoid(slope=5)):
        neuron: Any = backend.neuron(spec)
        x = x_seq.clone().requires_grad_()
        neuron.spike_grad = spike_grad
        spikes.append(backend.run(neuron, x, 0.25))
        spikes[-1].sum().backward()
        grads.append(x.grad)
    assert torch.equal(*spikes)
    assert not torch.equal(*grads)


def test_the_default_gradient_is_snntorchs_default(spec: Neuron) -> None:
    grads = []
    for spike_grad in (None, surrogate.atan()):
        neuron: Any = backend.neuron(spec)
        x = torch.linspace(-1, 1, 20)[:, None].requires_grad_()
        if spike_grad is not None:
            neuron.spike_grad = spike_grad
        backend.run(neuron, x, 0.25).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_state_stays_out_of_the_state_dict(spec: Neuron) -> None:
    net = network(spec)
    fresh = net.state_dict().keys()
    loop(net, torch.randn(4, 3, 5))
    assert net.state_dict().keys() == fresh
    network(spec).load_state_dict(net.state_dict())


def test_copies_after_gradients_start_without_state(spec: Neuron) -> None:
    net, x_seq = network(spec), torch.randn(6, 3, 5, requires_grad=True)
    first = loop(net, x_seq)
    twin = copy.deepcopy(net)
    assert torch.equal(loop(twin, x_seq), first)
    assert backend.membrane_potential(net[1]) is not None
