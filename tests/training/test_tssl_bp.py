"""TSSL-BP: the rule of the paper's code written out for one neuron, sums over paths, converted networks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from conversion_ext.backends import available, get_backend
from conversion_ext.network.site import SpikingSite
from conversion_ext.neurons import IF, LIF, Neuron, SignedIF
from conversion_ext.training import TSSLBP
from conversion_ext.types import PerLayer, Reset

T = 9


def site(spec: Neuron, tau: float, name: str = "reference") -> SpikingSite:
    found = SpikingSite("a", spec, get_backend(name), torch.ones((), dtype=torch.float64), PerLayer())
    found.stepping = TSSLBP(tau).stepping(spec)
    return found


def currents(seed: int = 0, N: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(T, N, dtype=torch.float64, generator=generator) * 0.6 + 0.4).requires_grad_()


def paper(x: list[float], grad_a: list[float], tau_m: float, tau_s: float) -> tuple[list[float], list[float]]:
    """TSSL-BP for one neuron as algorithms.md 17 states it: currents to synaptic currents a, and the gradient."""
    u_post, a, seen = 0.0, 0.0, []
    for value in x:
        u = (1 - 1 / tau_m) * u_post + value
        s = float(u > 1)
        a = a + (s - a) / tau_s
        seen.append((u, u - u_post, s, a))
        u_post = 0.0 if s else u
    kernel = [(1 - 1 / tau_s) ** k / tau_s for k in range(T)]
    grads, theta = [0.0] * T, 0.0
    for t in reversed(range(T)):
        u, rise, s, a = seen[t]
        pu = min(max(-1 / rise, -8), 0) * s
        g = sum(grad_a[t + k] * kernel[k] / -tau_s * pu * tau_s for k in range(T - t))
        if t < T - 1:
            g += theta * u * (-1 / tau_m) * pu + theta * (1 - 1 / tau_m) * (1 - s)
        theta = g * s + theta * (1 - s) * (1 - 1 / tau_m)
        if a < 1 / (4 * tau_s):
            f = math.exp(min(max((1 - u) / 0.2, -8), 8))
            g = sum(kernel[k] * grad_a[t + k] for k in range(T - t)) * f / (1 + f) ** 2 / 0.2
        grads[t] = g
    return [a for *_, a in seen], grads


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("tau_m", "tau_s"), [(5.0, 3.0), (2.0, 2.0), (10.0, 1.0)])
def test_it_is_the_rule_of_the_paper(seed, tau_m, tau_s):
    """The synaptic filter is linear, so autograd does it; the rule is that of the spikes."""
    x_seq = currents(seed)
    neurons = site(LIF(tau=tau_m, decay_input=False, v_init=0.0), tau_s)
    a, outputs = torch.zeros(6, dtype=torch.float64), []
    for s in neurons.stepping(neurons, x_seq):
        a = a + (s - a) / tau_s
        outputs.append(a)
    a_seq, grad_a = torch.stack(outputs), torch.randn(T, 6, dtype=torch.float64)
    (found,) = torch.autograd.grad((a_seq * grad_a).sum(), x_seq)
    assert 5 < (a_seq.detach() > 0).sum() < 54
    for n in range(6):
        a, expected = paper(x_seq[:, n].tolist(), grad_a[:, n].tolist(), tau_m, tau_s)
        assert a_seq[:, n].tolist() == pytest.approx(a)
        assert found[:, n].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", available())
@pytest.mark.parametrize("reset", [Reset.SUBTRACT, Reset.ZERO])
def test_for_converted_networks_it_is_the_sum_over_all_ways_to_later_spikes(name, reset):
    """IF: a current moves the spike of its own step by 1 / x, and all later ones that the reset lets it reach."""
    x_seq, weight = currents(5), torch.randn(T, 6, dtype=torch.float64)
    neurons = site(IF(v_init=0.5, reset=reset), 1.0, name)
    s_seq = neurons.stepping(neurons, x_seq)
    (found,) = torch.autograd.grad((s_seq * weight).sum(), x_seq)
    plain = get_backend(name)
    assert torch.equal(s_seq, plain.run(plain.neuron(IF(reset=reset)), x_seq.detach(), 0.5))
    x: Any = x_seq.detach()
    for n in range(6):
        s = s_seq[:, n].tolist()
        v = 0.5
        for t in range(T):
            u = v + x[t, n].item()
            v = u - s[t] if reset is Reset.SUBTRACT else u * (1 - s[t])
            if s[t]:
                until = T if reset is Reset.SUBTRACT else t + 1  # a hard reset forgets the current
                expected = sum(weight[k, n] * s[k] * min(max(1 / x[k, n], 0), 8) for k in range(t, until))
            else:
                expected = weight[t, n] / (4 * 0.2 * math.cosh(min(max((1 - u) / 0.2, -8), 8) / 2) ** 2)
            torch.testing.assert_close(found[t, n], torch.as_tensor(expected))
    assert 10 < s_seq.sum() < 45


def test_currents_that_decay_arrive_by_their_share():
    x_seq = currents(1)
    spikes, grads = [], []
    for decay, given in ((True, x_seq * 4), (False, x_seq)):
        neurons = site(LIF(tau=4.0, decay_input=decay), 2.0)
        s_seq = neurons.stepping(neurons, given)
        spikes.append(s_seq)
        grads.append(torch.autograd.grad(s_seq.sum(), x_seq, retain_graph=True)[0])
    assert torch.equal(*spikes)
    torch.testing.assert_close(*grads)


def test_a_sequence_goes_on_from_the_state():
    x_seq = currents(2)
    whole, parts = site(IF(), 1.0), site(IF(), 1.0)
    expected = whole.stepping(whole, x_seq)
    assert torch.equal(torch.cat([parts.stepping(parts, part) for part in x_seq.split(4)]), expected)


def test_other_neurons_are_refused():
    with pytest.raises(ValueError, match=r"IF and LIF.*SignedIF"):
        TSSLBP().stepping(SignedIF())
