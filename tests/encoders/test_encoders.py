"""Encoders: the law of each against its closed form, and what simulations make of them."""

from __future__ import annotations

import itertools
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.encoders import ConstantCurrent, Delta, Encoder, Latency, Poisson
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.types import Family

ENCODERS = (ConstantCurrent(), Poisson(), Poisson(gain=0.5, signed=True), Latency(), Latency(linear=True), Delta())
IMAGES = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steps(encoder: Encoder, x: Tensor, T: int, seed: int = 0) -> Tensor:
    return encoder(x.expand(T, *x.shape), seeded(seed))


def network(encoder: Encoder, **choices) -> tuple[nn.Module, SpikingNetwork]:
    ann = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)).double()
    recipe = cx.Recipe(cx.Maximum(), encoder=encoder, **choices)
    return ann, cx.convert(ann, IMAGES.double(), recipe=recipe, backend="reference", progress=False)


@pytest.mark.parametrize("encoder", ENCODERS, ids=repr)
def test_is_a_frozen_value_whose_steps_are_of_its_family(encoder):
    assert encoder == eval(repr(encoder))
    with pytest.raises(FrozenInstanceError):
        encoder.other = 1
    allowed = {Family.BINARY: {0.0, 1.0}, Family.SIGNED: {-1.0, 0.0, 1.0}}
    found = steps(encoder, IMAGES, 12)
    assert found.shape == (12, *IMAGES.shape)
    assert found.dtype == IMAGES.dtype
    assert encoder.family not in allowed or set(found.unique().tolist()) <= allowed[encoder.family]


@pytest.mark.parametrize("encoder", [e for e in ENCODERS if not isinstance(e, (Latency, Delta))], ids=repr)
def test_the_mean_of_a_rate_code_is_the_input(encoder):
    """Within five standard deviations of the mean of T Bernoulli draws, for every pixel and for all together."""
    T = 2000
    x = torch.linspace(-1 if getattr(encoder, "signed", False) else 0, 1, 101)
    gain = getattr(encoder, "gain", 1.0)
    p = gain * x.abs()
    error = steps(encoder, x, T).mean(0) - x
    deviation = (p * (1 - p) / T).sqrt() / gain
    assert (error.abs() <= 5 * deviation + 1e-6).all()
    assert error.mean().abs() <= 5 * deviation.square().sum().sqrt() / len(x)


def test_poisson_spikes_never_at_0_and_always_at_1():
    found = steps(Poisson(), torch.tensor([0.0, 1.0]), 5000)
    assert found.sum(0).tolist() == [0.0, 5000.0]


def test_poisson_is_what_the_generator_says():
    x = torch.rand(50)
    assert torch.equal(steps(Poisson(), x, 20, seed=3), steps(Poisson(), x, 20, seed=3))
    assert not torch.equal(steps(Poisson(), x, 20, seed=3), steps(Poisson(), x, 20, seed=4))
    state = torch.get_rng_state()
    steps(Poisson(), x, 20)
    assert torch.equal(torch.get_rng_state(), state)


def test_poisson_refuses_what_it_cannot_say_and_warns_of_what_it_clips():
    with pytest.raises(ValueError, match=r"input of -0\.5.*signed=True"):
        steps(Poisson(), torch.tensor([-0.5, 0.1]), 1)
    with pytest.warns(UserWarning, match=r"gain=1\) clips inputs beyond 1;"):
        found = steps(Poisson(), torch.tensor([2.0]), 3)
    assert found.flatten().tolist() == [1.0, 1.0, 1.0]
    for gain in (0, -1.0, float("nan"), float("inf"), "1"):
        with pytest.raises(ValueError, match="gain"):
            Poisson(gain=gain)


def test_latency_linear_is_one_spike_at_its_time():
    T = 11
    found = steps(Latency(linear=True), torch.tensor([1.0, 0.9, 0.52, 0.1, 0.005]), T)
    assert found[:, :4].argmax(0).tolist() == [0, 1, 5, 9]
    assert found.sum(0).tolist() == [1, 1, 1, 1, 0]  # below the threshold: no spike


def test_latency_of_a_membrane_is_the_time_to_reach_the_threshold():
    """Charge tau dv/dt = x - v in small steps until v = threshold; times compare as shares of one another."""
    encoder, x = Latency(threshold=0.2), torch.tensor([1.0, 0.6, 0.4, 0.25, 0.21], dtype=torch.float64)
    v, when = torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(400_000):
        v = v + 1e-5 * (x - v)
        when += v < 0.2
        if (v >= 0.2).all():
            break
    torch.testing.assert_close(encoder.delay(x) / encoder.delay(x)[-1], when / when[-1], rtol=1e-3, atol=0)


def test_latency_is_that_of_snntorch_where_a_batch_reaches_the_threshold():
    spikegen = pytest.importorskip("snntorch.spikegen")
    x = torch.cat([torch.rand(200, generator=seeded()), torch.zeros(1)])
    for linear, T in itertools.product((False, True), (5, 20)):
        theirs = spikegen.latency(x, num_steps=T, threshold=0.01, normalize=True, linear=linear, clip=True)
        ours = steps(Latency(linear=linear), x, T)
        assert (ours != theirs).any(0).sum() <= 2  # float32 there, float64 here: ties of rounding


def test_latency_refuses_inputs_outside_its_range():
    with pytest.raises(ValueError, match=r"-1 to 2.*scale them to \[0, 1\]"):
        steps(Latency(), torch.tensor([-1.0, 2.0]), 3)


@pytest.mark.parametrize("off", [False, True])
def test_delta_sends_the_changes(off):
    frames = torch.randn(30, 7, generator=seeded()).cumsum(0)
    found = Delta(threshold=0.5, off=off)(frames)
    before = torch.zeros(7)
    for t, x in enumerate(frames):
        for n in range(7):
            change = float(x[n] - before[n])
            expected = 1.0 if change >= 0.5 else -1.0 if off and change <= -0.5 else 0.0
            assert found[t, n] == expected
        before = x
    spikegen = pytest.importorskip("snntorch.spikegen")
    assert torch.equal(found, spikegen.delta(frames, threshold=0.5, off_spike=off))


@pytest.mark.parametrize("encoder", [e for e in ENCODERS if not e.constant], ids=repr)
def test_a_simulation_feeds_the_steps_whatever_the_chunk(encoder):
    x = IMAGES.double()
    _, snn = network(encoder)
    expected = cx.simulate(snn, x_seq=steps(encoder, x, 9)).outputs
    for chunk in (1, 4, 9):
        # Not bit by bit: a convolution rounds differently with another batch.
        torch.testing.assert_close(cx.simulate(snn, x, 9, time_chunk=chunk).outputs, expected)


def test_noise_is_that_of_the_generator_and_goes_on_over_batches():
    x = IMAGES.double()
    _, snn = network(Poisson())
    one, two = (cx.simulate(snn, x, 6, generator=seeded(s)).output for s in (0, 1))
    assert torch.equal(cx.simulate(snn, x, 6).output, one)
    assert not torch.equal(one, two)
    noise = seeded()
    batches = [(x, torch.zeros(4, dtype=torch.long))] * 2
    rates = [cx.simulate(snn, x, 6, generator=noise).firing_rate["1"].mean() for _ in batches]
    found = cx.evaluate(snn, batches, 6, progress=False).firing_rate["1"]
    assert found == pytest.approx(float(sum(rates)) / 2, abs=1e-12)
    assert rates[0] != rates[1]


def test_steps_are_made_one_chunk_at_a_time():
    """A million steps are asked for and three are read: nothing is made ahead."""
    stream = Poisson().encode(itertools.repeat(torch.rand(1000)), 10**6, seeded())
    assert sum(int(next(stream).sum()) for _ in range(3)) > 0


def test_the_output_of_a_poisson_network_tends_to_that_of_the_ann():
    x = IMAGES.double()
    for encoder in (Poisson(), Poisson(gain=0.25)):
        ann, snn = network(encoder)
        error = (cx.simulate(snn, x, 4000, at=(4000,)).output - ann(x)).abs().max()
        assert error < 0.05 * ann(x).abs().max()


def test_the_table_says_what_the_first_layer_sees():
    for encoder in ENCODERS:
        assert network(encoder)[1].conversion.table()[0].sees is encoder.family


def test_event_frames_are_taken_as_they_are():
    _, snn = network(ConstantCurrent())
    frames = (torch.rand(5, 4, 1, 6, 6, generator=seeded(2)) < 0.3).double()
    expected = torch.zeros(4, 5, dtype=torch.float64)
    cx.reset(snn)
    for frame in frames:
        expected = expected + snn(frame)
    cx.reset(snn)
    torch.testing.assert_close(cx.simulate(snn, x_seq=frames).output, expected / 5)


def test_a_recipe_takes_another_encoder():
    assert replace(cx.Recipe(), encoder=Poisson()).encoder == Poisson()
    with pytest.raises(TypeError, match="encoder"):
        cx.Recipe(encoder=Poisson)
