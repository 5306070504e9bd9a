"""Neuron values: what they accept, and the laws of their dynamics."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from conversion_ext.neurons import IF, BurstIF, Neuron, SignedEncoder, SignedIF, State, advance
from conversion_ext.types import Family, Reset

SPECS = (
    IF(), IF(v_init=0.0), IF(reset=Reset.ZERO), SignedIF(), SignedEncoder(), SignedEncoder(v_init=-0.25),
    BurstIF(2), BurstIF(2, signed=True, v_init=0.25), IF(floor=-1.0), IF(0.25, Reset.ZERO, floor=-0.5, strict=True),
)  # fmt: skip


def heaviside(z: Tensor) -> Tensor:
    return (z >= 0).to(z.dtype)


def start(spec: Neuron, x_seq: Tensor) -> State:
    v = torch.full_like(x_seq[0], spec.v_init)
    return (v, *(torch.zeros_like(v) for _ in spec.state[1:]))


def dyadic(T: int, n: int, low: float, high: float, grid: int = 16) -> Tensor:
    """Inputs [T, n] on a grid of 1/16: sums of them are exact in float32, and ties occur."""
    return torch.randint(int(low * grid), int(high * grid) + 1, (T, n)) / grid


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_is_a_frozen_value(spec: Neuron) -> None:
    assert spec == dataclasses.replace(spec)
    assert hash(spec) == hash(dataclasses.replace(spec))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.v_init = 0.1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("kind", [IF, SignedIF, BurstIF])
@pytest.mark.parametrize("v_init", [1, -0.1, float("nan"), "half"])
def test_refuses_an_initial_potential_outside_the_threshold(kind: type[Neuron], v_init: float) -> None:
    with pytest.raises(ValueError, match=r"v_init=.*\[0, 1\)"):
        kind(v_init=v_init)


@pytest.mark.parametrize("v_init", [0.51, -0.51, float("nan"), None])
def test_encoder_refuses_an_initial_backlog_above_one_half(v_init: float) -> None:
    with pytest.raises(ValueError, match=r"v_init=.*\[-1/2, 1/2\]"):
        SignedEncoder(v_init=v_init)


def test_refuses_a_reset_that_is_no_reset() -> None:
    with pytest.raises(ValueError, match=r"reset='subtract'.*Reset\.SUBTRACT or Reset\.ZERO"):
        IF(reset="subtract")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_spikes_take_only_the_values_of_the_family(spec: Neuron) -> None:
    x_seq = dyadic(64, 500, -3, 3)
    spikes, _ = advance(spec, x_seq, start(spec, x_seq), heaviside)
    signed = spec.family is Family.SIGNED or getattr(spec, "signed", False)
    assert spikes.unique().tolist() == list(range(-spec.levels if signed else 0, spec.levels + 1))


KEEPING = [s for s in SPECS if getattr(s, "reset", None) is not Reset.ZERO and getattr(s, "floor", None) is None]


@pytest.mark.parametrize("spec", KEEPING, ids=repr)
def test_soft_reset_conserves_charge(spec: Neuron) -> None:
    x_seq = dyadic(64, 500, -2, 2)
    spikes, state = advance(spec, x_seq, start(spec, x_seq), heaviside)
    assert torch.equal(state[0], spec.v_init + x_seq.sum(0) - spikes.sum(0))


def test_hard_reset_starts_anew_after_each_spike() -> None:
    x_seq = dyadic(64, 500, 0, 2)
    spikes, _ = advance(IF(reset=Reset.ZERO), x_seq, start(IF(), x_seq), heaviside)
    for n in range(20):  # every spike closes an interval whose charge reaches 1 with its last input only
        charge = 0.5
        for x, s in zip(x_seq[:, n].tolist(), spikes[:, n].tolist(), strict=True):
            charge += x
            assert (charge >= 1) == bool(s)
            charge = 0.0 if s else charge


LAW = (
    IF(), IF(v_init=0.0), IF(v_init=0.9375), IF(floor=-1.0), SignedIF(), SignedIF(v_init=0.0),
    BurstIF(), BurstIF(1), BurstIF(3, v_init=0.0), BurstIF(3, signed=True), BurstIF(15, signed=True, v_init=0.9375),
)  # fmt: skip


@pytest.mark.parametrize("spec", LAW, ids=repr)
def test_a_constant_input_gives_the_count_of_the_law(spec: Neuron) -> None:
    T = 48
    z = torch.arange(-32, 64 * spec.levels + 33, dtype=torch.float64) / 64  # below, within and above what can be said
    x_seq = z.expand(T, -1)
    spikes, _ = advance(spec, x_seq, start(spec, x_seq), heaviside)
    assert torch.equal(spikes.sum(0), (T * z + spec.v_init).floor().clamp(0, T * spec.levels))


def test_a_strict_neuron_waits_for_more_than_the_threshold() -> None:
    """A constant input z gives ``clamp(ceil(T z + v_init) - 1, 0, T)`` spikes: the law of IF but for ties."""
    T, spec = 48, IF(0.25, strict=True)
    z = torch.arange(-32, 97, dtype=torch.float64) / 64
    x_seq = z.expand(T, -1)
    spikes, _ = advance(spec, x_seq, start(spec, x_seq), heaviside)
    assert torch.equal(spikes.sum(0), ((T * z + spec.v_init).ceil() - 1).clamp(0, T))
    ties = advance(IF(0.25), x_seq, start(spec, x_seq), heaviside)[0].sum(0) != spikes.sum(0)
    assert torch.equal(ties, ((T * z + 0.25) % 1 == 0) & (z > 0) & (T * z + 0.25 <= T))


def test_a_floor_is_as_far_as_potentials_fall() -> None:
    x_seq = dyadic(200, 300, -2, 1)
    for reset in Reset:
        free, floored = IF(reset=reset), IF(reset=reset, floor=-1.0)
        potentials = []
        for spec in (free, floored):
            state, seen = start(spec, x_seq), []
            for x in x_seq:
                _, state = spec.step(x, state, heaviside)
                seen.append(state[0])
            potentials.append(torch.stack(seen))
        assert potentials[0].min() < -10
        assert potentials[1].min() == -1
        # Up to the first potential below the floor the two are one.
        same = (potentials[0].cummin(0).values >= -1).float()
        assert torch.equal(same * potentials[0], same * potentials[1])


@pytest.mark.parametrize(
    "options", [{"floor": 0.5}, {"floor": float("nan")}, {"floor": -float("inf")}, {"floor": "low"}, {"floor": True}]
)
def test_refuses_a_floor_that_is_none(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"IF\(floor=.*at most 0, or None"):
        IF(**options)


def test_floor_and_comparison_are_told_and_checked() -> None:
    assert (
        repr(IF(floor=-1.0, strict=True))
        == "IF(v_init=0.5, reset=<Reset.SUBTRACT: 'subtract'>, floor=-1.0, strict=True)"
    )
    with pytest.raises(ValueError, match=r"strict=1"):
        IF(strict=1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"which a floor forgets"):
        IF(lookahead=1, floor=-1.0)
    assert IF(floor=-1.0, strict=True).hosting(IF(0.25)) == IF(0.25, floor=-1.0, strict=True)


@pytest.mark.parametrize("spec", [SignedIF(), BurstIF(3, signed=True)], ids=repr)
def test_signed_neurons_never_take_back_what_they_did_not_send(spec: Neuron) -> None:
    x_seq = dyadic(200, 500, -1.5 * spec.levels, 1.5 * spec.levels)
    spikes, (_, count) = advance(spec, x_seq, start(spec, x_seq), heaviside)
    running = spikes.cumsum(0)
    assert running.min() == 0
    assert (spikes == -spec.levels).any()
    assert torch.equal(count, running[-1])


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("max_spikes", [1, 2, 15])
def test_a_burst_is_the_floor_of_the_potential(max_spikes: int, signed: bool) -> None:
    """The definition with floor and clamp, at every step, on inputs with ties; one spike at most is IF or SignedIF."""
    spec = BurstIF(max_spikes, signed=signed)
    x_seq = dyadic(100, 400, -max_spikes, 1.2 * max_spikes)
    spikes, _ = advance(spec, x_seq, start(spec, x_seq), heaviside)
    v, count = torch.full((400,), 0.5), torch.zeros(400)
    for x, s in zip(x_seq, spikes, strict=True):
        m = v + x
        least = -count.clamp(max=max_spikes) if signed else torch.zeros(400)
        assert torch.equal(s, m.floor().clamp(max=max_spikes).maximum(least))
        v, count = m - s, count + s
    if max_spikes == 1:
        same = SignedIF() if signed else IF()
        assert torch.equal(spikes, advance(same, x_seq, start(same, x_seq), heaviside)[0])


@pytest.mark.parametrize("options", [{"max_spikes": 0}, {"max_spikes": 2.0}, {"max_spikes": True}, {"signed": 1}])
def test_burst_refuses_what_is_no_number_of_spikes(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"BurstIF.{next(iter(options))}="):
        BurstIF(**options)


def test_signed_if_forgets_an_overshoot_that_if_keeps() -> None:
    """A transient of +1, +1 then -1, -1 sums to 0: the signed neuron ends at a count of 0, the binary one at 2."""
    x_seq = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0])[:, None]
    counts = [advance(s, x_seq, start(s, x_seq), heaviside)[0].sum().item() for s in (SignedIF(), IF())]
    assert counts == [0.0, 2.0]


@pytest.mark.parametrize("v_init", [0.0, 0.5, -0.5])
def test_encoder_keeps_its_backlog_within_one_half(v_init: float) -> None:
    spec = SignedEncoder(v_init=v_init)
    x_seq = torch.cat([dyadic(100, 500, -1, 1), torch.ones(50, 500), -torch.ones(50, 500)])
    state = start(spec, x_seq)
    total, sent = torch.full((500,), v_init), torch.zeros(500)
    for x in x_seq:
        s, state = spec.step(x, state, heaviside)
        total, sent = total + x, sent + s
        assert state[0].abs().max() <= 0.5
        assert (total - sent).abs().max() <= 0.5


@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_advance_equals_steps_one_by_one(spec: Neuron, dtype: torch.dtype) -> None:
    x_seq = torch.randn(20, 7, 5, dtype=dtype)
    first = state = start(spec, x_seq)
    steps: list[Tensor] = []
    for x in x_seq:
        s, state = spec.step(x, state, heaviside)
        steps.append(s)
    before = [x_seq.clone(), *(part.clone() for part in first)]
    spikes, last = advance(spec, x_seq, first, heaviside)
    assert torch.equal(spikes, torch.stack(steps))
    assert all(torch.equal(a, b) for a, b in zip(last, state, strict=True))
    assert all(torch.equal(a, b) for a, b in zip([x_seq, *first], before, strict=True))  # nothing written to


def test_a_neuron_without_dynamics_says_so() -> None:
    with pytest.raises(TypeError, match=r"Neuron must define step\(\)"):
        Neuron().step(torch.zeros(1), (torch.zeros(1),), heaviside)
