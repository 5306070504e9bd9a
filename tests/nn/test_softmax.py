"""The spiking softmax: its three variants against numpy, binomial bounds, and a case where counting spikes fails."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conversion_ext.nn import SpikingSoftmax
from conversion_ext.nn.softmax import METHODS
from conversion_ext.types import Family


def softmax(v: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(v - v.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.mark.parametrize(("dim", "shape"), [(-1, (3, 5)), (1, (3, 5, 4)), (-2, (3, 5, 4))])
def test_running_mean_of_membrane_is_softmax_of_the_mean_logits(dim: int, shape: tuple[int, ...]) -> None:
    x_seq = 3 * torch.randn(20, *shape, dtype=torch.float64)
    y_seq = SpikingSoftmax(dim, step_mode="m")(x_seq).numpy()
    for t in range(1, 21):
        expected = softmax(x_seq[:t].numpy().mean(0), dim)
        assert np.abs(y_seq[:t].mean(0) - expected).max() < 1e-13


@pytest.mark.parametrize(("method", "rate"), [("poisson", 1.0), ("external-poisson", 1.0), ("external-poisson", 0.3)])
def test_firing_probabilities(method: str, rate: float) -> None:
    # 20,000 copies of one sample in a batch; each step's frequency against softmax(v[t]) within 5 sigma
    copies, T = 20_000, 4
    x_seq = torch.randn(T, 1, 5, dtype=torch.float64) * 0.7
    y_seq = SpikingSoftmax(method=method, rate=rate, generator=3, step_mode="m")(x_seq.expand(T, copies, 5))
    assert set(y_seq.unique().tolist()) == {0, 1}
    p = rate * softmax(x_seq.numpy().cumsum(0))[:, 0]
    sigma = np.sqrt(p * (1 - p) / copies)
    assert (np.abs(y_seq.numpy().mean(1) - p) < 5 * sigma).all()
    per_step = y_seq.sum(-1)
    if method == "poisson":  # each neuron for itself: several or none may spike
        none = np.prod(1 - p, axis=1)
        assert (np.abs((per_step == 0).double().numpy().mean(1) - none) < 5 * np.sqrt(none / copies)).all()
        assert per_step.max() > 1
    else:  # one neuron per tick of the clock, and clocks of different samples tick apart
        assert per_step.max() == 1
        ticks = per_step.mean(1)
        assert ((ticks - rate).abs() <= 5 * math.sqrt(rate * (1 - rate) / copies)).all()


@pytest.mark.parametrize("method", METHODS)
def test_it_decides_where_all_logits_are_negative(method: str) -> None:
    logits = -1 - 4 * torch.rand(50, 10, dtype=torch.float64)
    decided = logits.argmax(1)
    x_seq = logits.expand(100, 50, 10)

    counts = torch.zeros_like(logits)
    v = torch.full_like(logits, 0.5)
    for x in x_seq:  # integrate and fire, soft reset
        v = v + x
        fired = (v >= 1).double()
        v, counts = v - fired, counts + fired
    assert counts.eq(0).all()  # nobody spikes: counting cannot decide

    totals = SpikingSoftmax(method=method, generator=1, step_mode="m")(x_seq).sum(0)
    clear = logits.topk(2, 1).values.diff(dim=1).abs().squeeze(1) > 0.1
    assert clear.sum() > 30
    assert torch.equal(totals.argmax(1)[clear], decided[clear])


@pytest.mark.parametrize("method", METHODS[1:])
def test_seeds(method: str) -> None:
    x_seq = torch.randn(30, 4, 6) * 0.1

    def run(generator: torch.Generator | int | None) -> Tensor:
        return SpikingSoftmax(method=method, rate=0.5, generator=generator, step_mode="m")(x_seq)

    assert torch.equal(run(5), run(5))
    assert not torch.equal(run(5), run(6))
    assert torch.equal(run(torch.Generator().manual_seed(9)), run(torch.Generator().manual_seed(9)))
    one = torch.Generator().manual_seed(9)
    assert not torch.equal(run(one), run(one))  # two modules made from one generator are independent
    assert not torch.equal(run(None), run(None))
    torch.manual_seed(4)
    first = run(None)
    torch.manual_seed(4)
    assert torch.equal(run(None), first)

    module = SpikingSoftmax(method=method, rate=0.5, generator=5, step_mode="m")
    torch.rand(1)
    before = torch.get_rng_state()
    first = module(x_seq)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone
    module.reset()
    module.seed = 6
    assert torch.equal(module(x_seq), run(6))
    assert not torch.equal(first, run(6))


def test_membrane_draws_nothing_at_construction() -> None:
    before = torch.get_rng_state()
    SpikingSoftmax()
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_of_membrane_are_those_of_finite_differences() -> None:
    module = SpikingSoftmax(step_mode="m")

    def run(x_seq: Tensor) -> Tensor:
        module.reset()
        return module(x_seq)

    assert torch.autograd.gradcheck(run, (torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True),))


def test_it_says_what_it_emits() -> None:
    assert SpikingSoftmax().family_out(Family.BINARY) is Family.GRADED
    assert SpikingSoftmax(method="poisson").family_out(Family.GRADED) is Family.BINARY
    assert SpikingSoftmax(method="external-poisson").binary
    assert "rate=0.3" in repr(SpikingSoftmax(method="external-poisson", rate=0.3))


def test_bad_arguments_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="method='spikes'.*membrane, poisson"):
        SpikingSoftmax(method="spikes")
    with pytest.raises(ValueError, match="dim=0"):
        SpikingSoftmax(dim=0)
    with pytest.raises(ValueError, match="rate=300"):
        SpikingSoftmax(rate=300)
    for dim in (-2, 2):
        with pytest.raises(ValueError, match="no such dimension"):
            SpikingSoftmax(dim=dim)(torch.zeros(3, 5))


@pytest.mark.parametrize("method", METHODS)
def test_as_output_layer_of_a_spikingjelly_network(method: str) -> None:
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron

    softmax = SpikingSoftmax(method=method, generator=2)
    last: Any = layer.Linear(20, 4)
    nn.init.normal_(last.weight)
    nn.init.constant_(last.bias, -15.0)  # all logits negative
    net = nn.Sequential(layer.Linear(6, 20), neuron.IFNode(v_reset=None), last, softmax).double()
    x, T = torch.rand(20, 6, dtype=torch.float64) * 2, 200
    functional.set_step_mode(net, "m")
    with torch.no_grad():
        many = net(x.expand(T, *x.shape))
        functional.reset_net(net)
        functional.set_step_mode(net, "s")
        single = torch.stack([net(x) for _ in range(T)])
        logits = net[:-1]
        functional.reset_net(net)
        mean = torch.stack([logits(x) for _ in range(T)]).mean(0)
    assert mean.max() < 0
    assert torch.allclose(many, single, rtol=0, atol=1e-11)
    clear = mean.topk(2, 1).values.diff(dim=1).abs().squeeze(1) > 0.1
    assert clear.sum() > 10
    assert torch.equal(many.sum(0).argmax(1)[clear], mean.argmax(1)[clear])
