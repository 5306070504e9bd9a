"""Leaky neurons and synaptic filters: closed forms, frameworks' own modules, every backend."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from conversion_ext.backends import available, get_backend
from conversion_ext.neurons import IF, LIF, BurstIF, Filtered, Neuron, RefractoryLIF, advance
from conversion_ext.types import Reset

LEAKY = (
    LIF(tau=4.0), LIF(tau=4.0, decay_input=False), LIF(tau=3.0, reset=Reset.SUBTRACT), RefractoryLIF(tau=8.0),
    Filtered(IF(), tau=3.0), Filtered(RefractoryLIF(bias=1.0), tau=2.0, order=2), Filtered(BurstIF(3), tau=2.0),
)  # fmt: skip


def heaviside(z: Tensor) -> Tensor:
    return (z >= 0).to(z.dtype)


def run(spec: Neuron, x_seq: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    v = torch.full_like(x_seq[0], spec.v_init)
    return advance(spec, x_seq, (v, *(torch.zeros_like(v) for _ in spec.state[1:])), heaviside)


@pytest.mark.parametrize("tau", [1.5, 4.0, 20.0])
def test_lif_fires_at_the_interval_of_the_closed_form(tau):
    x = torch.linspace(1.03, 6.0, 60, dtype=torch.float64)
    n = (torch.log(1 - 1 / x) / math.log(1 - 1 / tau)).ceil()
    assert torch.equal(run(LIF(tau=tau), x.expand(500, -1))[0].sum(0), (500 / n).floor())
    assert run(LIF(tau=tau), torch.full((500, 1), 0.999))[0].sum() == 0  # v tends to x from below


@pytest.mark.parametrize(("tau", "refractory"), [(20.0, 2.0), (50.0, 1.0), (5.0, 3.7)])
def test_the_rate_of_a_refractory_lif_is_that_of_the_formula(tau, refractory):
    """Hunsberger's rate; a spike train of T steps holds its floor or one less, since the first interval has no wait."""
    T = 3000
    j = torch.cat([torch.linspace(0.0, 1.0, 5), torch.linspace(1.01, 40.0, 200)]).double()
    expected = torch.where(j > 1, 1 / (refractory + tau * torch.log1p(1 / (j - 1).clamp_min(1e-9))), 0.0)
    spikes = run(RefractoryLIF(tau=tau, refractory=refractory), j.expand(T, -1))[0].sum(0)
    assert ((spikes - T * expected).abs() <= 1).all()
    gain_and_bias = RefractoryLIF(tau=tau, refractory=refractory, gain=4.0, bias=1.0)
    assert torch.equal(run(gain_and_bias, ((j - 1) / 4).expand(T, -1))[0].sum(0), spikes)


def test_a_refractory_lif_is_nengos():
    """Nengo's update, written out for one neuron, on random currents."""
    tau, refractory, T = 7.0, 2.3, 400
    x_seq = 3 * torch.randn(T, 20, dtype=torch.float64) + 1
    found, _ = run(RefractoryLIF(tau=tau, refractory=refractory), x_seq)
    for n in range(20):
        voltage, refractory_time = 0.0, 0.0
        for t in range(T):
            current = float(x_seq[t, n])
            refractory_time -= 1
            delta = min(max(1 - refractory_time, 0.0), 1.0)
            voltage -= (current - voltage) * math.expm1(-delta / tau)
            spiked = voltage > 1
            if spiked:
                refractory_time = refractory + 1 + tau * math.log1p(-(voltage - 1) / (current - 1))
                voltage = 0.0
            voltage = max(voltage, 0.0)
            assert found[t, n] == spiked, (t, n)


@pytest.mark.parametrize("order", [1, 2])
def test_a_filter_answers_an_impulse_with_its_kernel_and_keeps_the_mean(order):
    tau, T = 4.0, 200
    a = math.exp(-1 / tau)
    k = torch.arange(T, dtype=torch.float64)
    kernel = (1 - a) * a**k if order == 1 else (1 - a) ** 2 * (k + 1) * a**k

    seen: list[Tensor] = []

    class Spy(IF):
        def step(self, x, state, heaviside):
            seen.append(x)
            return super().step(x, state, heaviside)

    impulse = torch.zeros(T, 1, dtype=torch.float64)
    impulse[0] = 1
    run(Filtered(Spy(), tau, order), impulse)
    torch.testing.assert_close(torch.stack(seen).flatten(), kernel)
    assert kernel.sum() == pytest.approx(1)


@pytest.mark.parametrize("order", [1, 2])
def test_a_filter_delays_a_constant_current_and_changes_no_rate(order):
    x = torch.linspace(0, 1, 33, dtype=torch.float64)
    plain, late = (run(spec, x.expand(400, -1))[0].sum(0) for spec in (IF(), Filtered(IF(), 5.0, order)))
    expected = plain - order * x / -math.expm1(-1 / 5.0) + order * x  # what the filters still hold at the end
    assert (late - expected).abs().max() <= 1


@pytest.mark.parametrize("name", [n for n in available() if n != "reference"])
@pytest.mark.parametrize("spec", LEAKY, ids=repr)
@pytest.mark.parametrize("grad", [False, True])
def test_every_backend_gives_the_same_spikes(name, spec, grad):
    x_seq = torch.randn(60, 8, 30, requires_grad=grad) * 1.5 + 0.3
    one, other = (get_backend(n) for n in ("reference", name))
    a, b = one.neuron(spec), other.neuron(spec)
    expected, found = one.run(a, x_seq, spec.v_init), other.run(b, x_seq, spec.v_init)
    assert expected.sum() > 100
    if type(spec) is LIF and name == "spikingjelly":  # its fused step rounds in its own order: float32 ties
        assert (expected != found).double().mean() < 1e-3
    else:
        assert torch.equal(expected, found)
    if grad:
        (gradient,) = torch.autograd.grad(found.sum(), x_seq)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_lif_is_the_stock_node_of_spikingjelly():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    for decay in (True, False):
        node = get_backend("spikingjelly").neuron(LIF(tau=4.0, decay_input=decay))
        assert type(node) is neuron.LIFNode
        assert (node.tau, node.decay_input, node.v_reset) == (4.0, decay, 0.0)


def test_lif_without_decay_of_the_input_is_snntorchs_leaky():
    """Stock Leaky subtracts at the next step and fires above 1: on a grid without ties the spikes are the same."""
    snn = pytest.importorskip("snntorch")
    x_seq = torch.randn(80, 50, dtype=torch.float64) * 0.7 + 0.2
    for reset, mechanism in ((Reset.SUBTRACT, "subtract"), (Reset.ZERO, "zero")):
        leaky, mem, theirs = snn.Leaky(beta=0.75, reset_mechanism=mechanism), torch.zeros(50).double(), []
        for x in x_seq:
            # Leaky takes the reset of the last spike off before it charges, `mem` being before it.
            s, mem = leaky(x, mem)
            theirs.append(s)
        ours, _ = run(LIF(tau=4.0, decay_input=False, reset=reset), x_seq)
        differ = (ours != torch.stack(theirs)).double().mean()
        if reset is Reset.SUBTRACT:
            # subtract after the decay (theirs) or before it (ours): not the same neuron, which LIF's text says
            assert differ > 0
        else:
            assert differ == 0


@pytest.mark.parametrize(
    "bad",
    [lambda: LIF(tau=1), lambda: LIF(reset="zero"), lambda: RefractoryLIF(refractory=0.5), lambda: RefractoryLIF(tau=0),
     lambda: Filtered(tau=0), lambda: Filtered(order=3), lambda: LIF(v_init=1.0)],
)  # fmt: skip
def test_bad_values_are_refused(bad):
    with pytest.raises(ValueError, match="="):
        bad()
    with pytest.raises(TypeError, match="of="):
        Filtered(of=IF)
