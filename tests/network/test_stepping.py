"""Tuners that act while simulating, against the published loops written out by hand and the theorems behind them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available, get_backend
from conversion_ext.network.site import SpikingSite
from conversion_ext.tuners.offset_spike import Shifted
from conversion_ext.tuners.residual_potential import Masked
from conversion_ext.types import Steps
from tests import laws
from tests.live import live, live_inputs, make_live

ALL = [cx.tuners.ResidualPotential(tau=5), cx.tuners.OffsetSpike(rho=4), cx.tuners.VoltageClamp(steps=2)]
IDS = ["srp", "cos", "clamp"]


def convert(tuner, ann, x, backend="reference", **options):
    recipe = cx.Recipe(cx.Percentile(99.0), tuners=() if tuner is None else (tuner,))
    return cx.convert(ann, x, recipe=recipe, backend=backend, progress=False, **options)


def mlp(tuner, T=None, **options):
    torch.manual_seed(0)
    sizes = [(12, 30), (30, 30), (30, 30), (30, 7)]
    layers = [layer for size in sizes for layer in (nn.Linear(*size, dtype=torch.float64), nn.ReLU())]
    ann = make_live(nn.Sequential(*layers[:-1]), 12)
    x = live_inputs(ann, 12, samples=20)
    return ann, convert(tuner, ann, x, **options), x


def zoo_network(name, tuner, backend="reference", dtype=torch.float64):
    ann, x = live(name, samples=4, seed=5, dtype=dtype)
    return ann, convert(tuner, ann, x, backend), x


def linears(ann: nn.Module, snn: Any) -> list[tuple[nn.Module, Tensor]]:
    """Return (linear layer, threshold) of each spiking layer."""
    return list(zip(list(ann)[:-1:2], snn.conversion.thresholds.values(), strict=True))


def running_mean(outputs: list[Tensor]) -> Tensor:
    return torch.stack([torch.stack(outputs[: t + 1]).mean(0) for t in range(len(outputs))])


def fire(m: Tensor) -> Tensor:
    return (m >= 1).double()


def site_of(stepping=None, backend="reference", dtype=torch.float64):
    site = SpikingSite("a", cx.IF(), get_backend(backend), torch.ones((), dtype=dtype), cx.PerLayer())
    site.stepping = stepping or site.stepping
    return site


def dyadic(T, N, mean, seed=0):
    """Return currents [T, N] of deviation 0.6 that are multiples of 1/64, so that sums are exact."""
    z = torch.randn(T, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((0.6 * z + mean) * 64).round() / 64


def counts(site: SpikingSite, z_seq: Tensor) -> tuple[Tensor, Tensor]:
    """Return the spikes [N] for currents [T, N] and the potential after them."""
    spikes = site(z_seq.flatten(0, 1).unsqueeze(1), Steps(len(z_seq))).view(z_seq.shape)
    assert site.potential is not None
    return spikes.sum(0), site.potential.view(-1)


# Residual potential (SRP)


@pytest.mark.parametrize("criterion", ["paper", "exact"])
@pytest.mark.parametrize("fold", [True, False], ids=["folded", "unfolded"])
def test_residual_potential_is_the_published_loop(criterion, fold):
    tau, T = 5, 6
    ann, snn, x = mlp(cx.tuners.ResidualPotential(tau=tau, criterion=criterion), fold=fold)
    layers = linears(ann, snn)
    v: list[Any] = [torch.tensor(0.5).double()] * 3
    N: list[Any] = [0] * 3
    mask: list[Tensor] = []
    outputs = []
    for t in range(1, tau + T + 1):
        h = x
        for index, (linear, theta) in enumerate(layers):
            m = v[index] + linear(h) / theta
            s = fire(m)
            v[index], N[index] = m - s, N[index] + s
            h = theta * (s * mask[index] if t > tau else s)
        if t == tau:
            mask = [(a > 1e-3 if criterion == "paper" else a + n >= 1).double() for a, n in zip(v, N, strict=True)]
            v = [torch.tensor(0.5).double()] * 3
        if t > tau:
            outputs.append(ann[-1](h))
    found = cx.simulate(snn, x, T, record=("spikes",))
    torch.testing.assert_close(found.outputs, running_mean(outputs), rtol=1e-9, atol=1e-9)
    assert (found.total_steps, found.latency_steps) == (tau + T, tau + T)
    spikes = found.recorded["spikes"]
    for index, key in enumerate(spikes):
        assert spikes[key].shape[0] == tau + T
        silenced = mask[index] == 0
        assert bool(silenced.any())
        assert not spikes[key][tau:, silenced].any()
    for key, train in spikes.items():
        torch.testing.assert_close(found.spikes[key], train.flatten(2).sum((0, 2)))
    torch.testing.assert_close(found.spikes_per_sample, sum(found.spikes.values()))
    if fold:
        operations = cx.synops(snn, x, T)
        assert operations.T == tau + T
        assert sum(operations.spikes.values()) == pytest.approx(float(found.spikes_per_sample.mean()))
    for key, rate in found.firing_rate.items():
        torch.testing.assert_close(rate, spikes[key][tau:].mean(0))


def test_the_pre_simulation_is_the_plain_network():
    _, plain, x = mlp(None)
    _, snn, _ = mlp(cx.tuners.ResidualPotential(tau=5))
    first = cx.simulate(snn, x, 2, record=("spikes", "potential")).recorded
    for key, spikes in laws.spikes(plain, x, 5).items():
        assert torch.equal(first["spikes"][key][:5], spikes)
        assert first["potential"][key].shape == first["spikes"][key].shape


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("tau", [1, 4, 8])
def test_potential_and_count_give_the_activation_exactly(backend, tau):
    """a = clamp(floor(v + N), 0, tau) for dyadic currents, and the exact mask is a >= 1; what a = 0 leaves is v < 0."""
    z_seq = dyadic(tau, 4000, 0.15)
    a = (z_seq.sum(0) + 0.5).floor().clamp(0, tau)
    site = site_of(Masked(tau, "exact"), backend)
    N, v = counts(site, z_seq)
    assert torch.equal((v + N).floor().clamp(0, tau), a)
    assert bool((v[(a == 0) & (N >= 1)] < 0).all())
    site.stepping.end_warm_up(site)
    assert torch.equal(site.stepping.mask.view(-1), a >= 1)


@pytest.mark.parametrize(("mean", "tau", "plain", "masked"), [(0.15, 4, 0.825, 0.950), (-0.2, 8, 0.746, 0.972)])
def test_the_mask_mends_as_many_counts_as_measured_elsewhere(mean, tau, plain, masked):
    """The share of right counts on Gaussian currents, an experiment of which the notes on SRP give the results."""
    z_seq = 0.6 * torch.randn(tau, 40_000, dtype=torch.float64) + mean
    a = (z_seq.sum(0) + 0.5).floor().clamp(0, tau)
    site = site_of(Masked(tau, "paper"))
    N, v = counts(site, z_seq)
    site.stepping.end_warm_up(site)
    site.restart()
    again, _ = counts(site, z_seq)
    assert torch.equal(again, N * (v > 1e-3))
    assert float((N == a).double().mean()) == pytest.approx(plain, abs=0.01)
    assert float((again == a).double().mean()) == pytest.approx(masked, abs=0.01)


def test_a_constant_current_is_masked_where_the_rule_says():
    """Layer 1: silenced iff z <= -1/(2 tau), or, by the paper's rule alone, at a tie of tau z + 1/2."""
    tau, T = 4, 6
    z = torch.arange(-32, 64, dtype=torch.float64) / 32
    plain = counts(site_of(), z.expand(T, -1))[0]
    tie = ((tau * z + 0.5) % 1 == 0) & (z < 1)
    for criterion, silent in (("paper", (z <= -0.5 / tau) | tie), ("exact", (tau * z + 0.5).floor() < 1)):
        site = site_of(Masked(tau, criterion))
        counts(site, z.expand(tau, -1))
        site.stepping.end_warm_up(site)
        site.restart()
        again, _ = counts(site, z.expand(T, -1))
        assert torch.equal(again, torch.where(silent, 0.0, plain))


@pytest.mark.parametrize("name", ["residual", "inception", "gated"])
def test_the_second_run_starts_anew_in_pools_and_functions_too(name):
    """Against the plain network run twice, the second time with hooks that silence its sites."""
    tau, T = 5, 4
    _, plain, x = zoo_network(name, None)
    _, snn, _ = zoo_network(name, cx.tuners.ResidualPotential(tau=tau))
    cx.simulate(plain, x, tau)
    for site in plain.sites().values():
        if isinstance(site.spec, cx.IF) and site.potential is not None:
            site.register_forward_hook(lambda _m, _a, out, mask=site.potential > 1e-3: out * mask)
    expected = cx.simulate(plain, x, T, time_chunk=1).outputs
    torch.testing.assert_close(cx.simulate(snn, x, T).outputs, expected, rtol=1e-9, atol=1e-9)


def test_by_hand_a_pre_simulation_is_ended_by_hand():
    _, snn, x = mlp(cx.tuners.ResidualPotential(tau=3))
    expected = cx.simulate(snn, x, 4).output
    cx.reset(snn)
    with torch.no_grad():
        for _ in range(3):
            snn(x)
        with pytest.raises(cx.errors.StateError, match="end_warm_up"):
            snn(x)
        snn.end_warm_up()
        torch.testing.assert_close(torch.stack([snn(x) for _ in range(4)]).mean(0), expected, rtol=1e-9, atol=1e-9)
        cx.reset(snn)
        snn(x)
        with pytest.raises(cx.errors.StateError, match="run the rest"):
            snn.end_warm_up()


def test_going_on_needs_no_second_pre_simulation():
    _, snn, x = mlp(cx.tuners.ResidualPotential(tau=3))
    whole = cx.simulate(snn, x, 6, record=("spikes",))
    cx.simulate(snn, x, 2)
    rest = cx.simulate(snn, x, 4, reset=False, record=("spikes",))
    assert (rest.total_steps, rest.latency_steps) == (4, 4)
    for key, spikes in whole.recorded["spikes"].items():
        assert torch.equal(spikes[5:], rest.recorded["spikes"][key])


def test_frames_hold_the_warm_up():
    _, snn, x = mlp(cx.tuners.ResidualPotential(tau=3))
    frames = cx.simulate(snn, x_seq=x.expand(8, *x.shape))
    assert len(frames.outputs) == 5
    torch.testing.assert_close(frames.outputs, cx.simulate(snn, x, 5).outputs, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="T=6 after 3 of warm-up, but x_seq holds 8"):
        cx.simulate(snn, x_seq=x.expand(8, *x.shape), T=6)


# Offset spikes (COS)


def published_cos(ann, layers, x, rho, T):
    """Return running mean outputs and {layer: spikes}, layer by layer on whole sequences."""
    sequence, trains = [x] * T, []
    for linear, theta in layers:
        z = [linear(h) / theta for h in sequence]
        v = torch.full_like(z[0], 0.5)
        N, A, B = torch.zeros_like(v), torch.full_like(v, 1000.0), torch.full_like(v, -1000.0)
        for t in range(rho):
            m = v + z[t]
            s = fire(m)
            v, N = m - s, N + s
            A = torch.where(s == 1, torch.min(A, m), A)
            B = torch.where(s == 0, torch.max(B, v), B)
        down = 0.5 - torch.max(torch.ones_like(A), A - 0.999)
        up = 0.5 + torch.max(torch.ones_like(B), 1.001 - B)
        v = torch.where((v < 0) & (N >= 1), down, torch.where(v >= 1, up, torch.full_like(v, 0.5)))
        train = []
        for current in z:
            m = v + current
            train.append(fire(m))
            v = m - train[-1]
        trains.append(torch.stack(train))
        sequence = [theta * s for s in train]
    return running_mean([ann[-1](h) for h in sequence]), trains


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "unfolded"])
@pytest.mark.parametrize("T", [4, 9])
def test_offset_spike_is_the_published_loop(T, fold):
    ann, snn, x = mlp(cx.tuners.OffsetSpike(rho=4), fold=fold)
    expected, trains = published_cos(ann, linears(ann, snn), x, 4, T)
    found = cx.simulate(snn, x, T, record=("spikes",), time_chunk=1)
    for ours, theirs in zip(found.recorded["spikes"].values(), trains, strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(found.outputs, expected, rtol=1e-9, atol=1e-9)
    assert (found.total_steps, found.latency_steps) == (4 + T, 3 * 4 + T)
    plain = cx.simulate(mlp(None)[1], x, T, record=("spikes",)).recorded["spikes"]
    assert any(not torch.equal(a, b) for a, b in zip(plain.values(), trains, strict=True))


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("rho", [4, 8])
def test_a_shift_changes_the_count_by_exactly_one(backend, rho):
    z_seq = dyadic(rho, 4000, 0.15)
    N, v = counts(site_of(backend=backend), z_seq)
    again, _ = counts(site_of(Shifted(rho, 1), backend), z_seq)
    surplus, lacking = (v < 0) & (N >= 1), (v >= 1) & (N < rho)
    assert int(surplus.sum()) > 100
    assert int(lacking.sum()) > 20
    assert torch.equal(again - N, lacking.double() - surplus.double())


@pytest.mark.parametrize(("rho", "plain", "shifted"), [(4, 0.8245, 0.9970), (8, 0.7029, 0.9714)])
def test_shifts_mend_as_many_counts_as_measured_elsewhere(rho, plain, shifted):
    """The share of right counts on N(0.15, 0.6) as the notes on COS give it; a second run mends most of the rest."""
    z_seq = 0.6 * torch.randn(rho, 40_000, dtype=torch.float64) + 0.15
    a = (z_seq.sum(0) + 0.5).floor().clamp(0, rho)
    right = [float((counts(site_of(stepping), z_seq)[0] == a).double().mean())
             for stepping in (None, Shifted(rho, 1), Shifted(rho, 2))]  # fmt: skip
    assert right[0] == pytest.approx(plain, abs=0.01)
    assert right[1] == pytest.approx(shifted, abs=0.004)
    assert right[2] >= right[1]
    assert right[2] > 0.995


def test_a_constant_current_needs_no_shift():
    z = torch.arange(-32, 32, dtype=torch.float64) / 32
    for T in (4, 7):
        plain, shifted = counts(site_of(), z.expand(T, -1))[0], counts(site_of(Shifted(4, 2)), z.expand(T, -1))[0]
        assert torch.equal(plain, shifted)


def waiting(chain: int, rho: int, iterations: int, T: int) -> int:
    """Return when the last of ``chain`` sites makes step T, found by playing one neuron step per site and time step."""
    looked, sent = [0] * chain, [0] * chain
    for now in range(1, 10_000):
        for site in range(chain):
            given = T if site == 0 else sent[site - 1]
            if looked[site] < rho * iterations:
                looked[site] += given > looked[site] % rho
            else:
                sent[site] += given > sent[site]
        if sent[-1] == T:
            return now
    raise AssertionError


@pytest.mark.parametrize(("rho", "iterations"), [(1, 1), (4, 1), (3, 2)])
def test_offset_spike_waits_at_every_site(rho, iterations):
    _, snn, x = mlp(cx.tuners.OffsetSpike(rho=rho, iterations=iterations))
    found = cx.simulate(snn, x, 6)
    assert found.latency_steps == waiting(3, rho, iterations, 6)
    assert found.total_steps == 6 + rho * iterations


def test_offset_spike_by_hand_wants_its_sequence_at_once():
    _, snn, x = mlp(cx.tuners.OffsetSpike(rho=3))
    expected = cx.simulate(snn, x, 5).output
    cx.reset(snn)
    with torch.no_grad():
        with pytest.raises(cx.errors.StateError, match="looks at the first 3 steps"):
            snn(x)
        snn.step_mode = "m"
        torch.testing.assert_close(snn(x.expand(5, *x.shape)).mean(0), expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="simulate T >= 3"):
        cx.simulate(snn, x, 2)
    with pytest.raises(ValueError, match="single steps"):
        cx.simulate(snn, x, 5, record=("potential",))


# Voltage clamp


def test_a_clamped_site_waits_and_then_is_a_plain_neuron():
    ann, snn, x = mlp(cx.tuners.VoltageClamp(steps=2))
    T, outputs = 9, []
    v: list[Any] = [torch.tensor(0.5).double()] * 3
    for t in range(1, T + 1):
        h = x
        for index, (linear, theta) in enumerate(linears(ann, snn)):
            z, open_ = linear(h) / theta, t > 2 * (index + 1)
            s = fire(v[index] + z) if open_ else torch.zeros_like(z)
            v[index] = v[index] + z - s if open_ else v[index]
            h = theta * s
        outputs.append(ann[-1](h))
    found = cx.simulate(snn, x, T, record=("spikes", "potential"))
    torch.testing.assert_close(found.outputs, running_mean(outputs), rtol=1e-9, atol=1e-9)
    for index, key in enumerate(found.firing_rate):
        assert not found.recorded["spikes"][key][: 2 * (index + 1)].any()
        assert bool((found.recorded["potential"][key][: 2 * (index + 1)] == 0.5).all())
    assert (found.total_steps, found.latency_steps) == (T, T)
    effective = cx.simulate(snn, x, T, readout=cx.readouts.MeanOutput(start=6), at=[T]).output
    torch.testing.assert_close(effective, torch.stack(outputs[6:]).mean(0), rtol=1e-9, atol=1e-9)


# All of them


@pytest.mark.parametrize("backend", [b for b in available() if b != "reference"])
@pytest.mark.parametrize("tuner", ALL, ids=IDS)
def test_every_framework_and_copy_makes_the_same_spikes(tuner, backend, tmp_path):
    _, ours, x = zoo_network("residual", tuner, dtype=torch.float32)
    _, theirs, _ = zoo_network("residual", tuner, backend, torch.float32)
    expected = laws.spikes(ours, x, 7)
    torch.save(theirs, tmp_path / "snn.pt")
    for snn in (theirs, theirs, copy.deepcopy(theirs), torch.load(tmp_path / "snn.pt", weights_only=False)):
        found = laws.spikes(snn, x, 7)
        for key, spikes in expected.items():
            assert torch.equal(spikes, found[key]), key


@pytest.mark.parametrize("tuner", ALL, ids=IDS)
def test_shorter_runs_are_prefixes_and_chunks_agree(tuner):
    _, snn, x = zoo_network("residual", tuner)
    whole = cx.simulate(snn, x, 9)
    for T, chunk in ((4, 1), (6, 9), (9, 5)):
        part = cx.simulate(snn, x, T, time_chunk=chunk)
        torch.testing.assert_close(whole.outputs[:T], part.outputs, rtol=1e-9, atol=1e-9)
    result = cx.evaluate(snn, (x, torch.arange(4)), 9, progress=False)
    assert (result.total_steps, result.latency_steps) == (whole.total_steps, whole.latency_steps)
    assert result.accuracy[-1] == (whole.output.argmax(1) == torch.arange(4)).double().mean()


def test_the_frameworks_reset_forgets_masks():
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    _, snn, x = zoo_network("residual", cx.tuners.ResidualPotential(tau=2), "spikingjelly", torch.float32)
    cx.simulate(snn, x, 3)
    assert all(site.stepping.mask is not None for site in snn.sites().values())
    functional.reset_net(snn)
    assert all(site.stepping.mask is None and site.stepping.t == 0 for site in snn.sites().values())


def test_the_twin_is_that_of_the_plain_network():
    _, plain, x = mlp(None)
    for tuner in ALL:
        assert torch.equal(cx.twin(mlp(tuner)[1], 5)(x), cx.twin(plain, 5)(x))


def test_what_does_not_fit_is_refused():
    for tuner in ALL[:2]:
        with pytest.raises(ValueError, match="IF neurons with soft reset"):
            cx.Recipe(neuron=cx.SignedIF(), family="signed", tuners=(tuner,))
        with pytest.raises(ValueError, match="use one of them"):
            cx.simulate(mlp(tuner)[1], torch.zeros(1, 12, dtype=torch.float64), 8, block=2)
    soft = nn.Sequential(nn.Linear(4, 9), cx.nn.SoftLIF(), nn.Linear(9, 3))
    with pytest.raises(ValueError, match="IF neurons with soft reset .*here they are RefractoryLIF"):
        convert(ALL[0], soft, torch.rand(5, 4))
    with pytest.raises(ValueError, match="choose one"):
        cx.Recipe(tuners=(ALL[0], ALL[1]))
    for bad in (
        lambda: cx.tuners.ResidualPotential(tau=0),
        lambda: cx.tuners.ResidualPotential(criterion="papre"),
        lambda: cx.tuners.OffsetSpike(rho=0),
        lambda: cx.tuners.OffsetSpike(iterations=1.5),
        lambda: cx.tuners.VoltageClamp(steps=0),
    ):
        with pytest.raises(ValueError, match=r"\("):
            bad()
