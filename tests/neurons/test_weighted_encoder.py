"""Signed values as pairs of binary neurons whose spikes weigh less from step to step."""

from __future__ import annotations

import pytest
import torch

import conversion_ext as cx
from conversion_ext.backends import available, get_backend
from conversion_ext.neurons import SignedEncoder, WeightedEncoder, WeightedIF
from conversion_ext.types import Family

WEIGHTS = (4, 2, 2, 1)


def run(spec: SignedEncoder, x_seq: torch.Tensor, backend: str = "reference") -> torch.Tensor:
    """Return what the on and the off neurons send for x_seq [T, N], [T, N, 2]."""
    framework = get_backend(backend)
    return framework.run(framework.neuron(spec), x_seq.unsqueeze(2).expand(*x_seq.shape, 2), 0.0)


@pytest.mark.parametrize("backend", available())
def test_decisions_against_the_rule_written_out(backend: str) -> None:
    increments = torch.randn(6, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    spikes = run(WeightedEncoder(weights=WEIGHTS, pairs=True), increments, backend)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    for n in range(30):
        m = 0.0
        for t in range(6):
            m += float(increments[t, n])
            w = WEIGHTS[t] if t < 4 else None  # silent after the last weight
            on, off = (0, 0) if w is None else (int(m >= w / 2), int(m <= -w / 2))
            assert spikes[t, n].tolist() == [on, off]
            m -= (w or 0) * (on - off)


def test_a_total_that_is_known_is_sent_within_half_a_unit() -> None:
    total = torch.linspace(-9.4, 9.4, 2001, dtype=torch.float64)
    increments = torch.cat([total[None], torch.zeros(3, 2001, dtype=torch.float64)])
    spikes = run(WeightedEncoder(weights=WEIGHTS, pairs=True), increments)
    sent = ((spikes[..., 0] - spikes[..., 1]) * torch.tensor(WEIGHTS, dtype=torch.float64)[:, None]).sum(0)
    assert (sent - total).abs().max() <= 0.5
    assert not (spikes.sum(2) > 1).any()


def test_a_wrong_decision_is_made_good_by_later_ones() -> None:
    """Whatever of -3 to 3 was expected too much at the first step: later weights add up to 5."""
    wrong = torch.arange(-3, 4, dtype=torch.float64)
    increments = torch.stack([2.0 + wrong, -wrong, 0 * wrong, 0 * wrong])
    spikes = run(WeightedEncoder(weights=WEIGHTS, pairs=True), increments)
    sent = ((spikes[..., 0] - spikes[..., 1]) * torch.tensor(WEIGHTS, dtype=torch.float64)[:, None]).sum(0)
    assert (sent == 2).all()


@pytest.mark.parametrize("backend", available())
def test_pairs_at_a_rate_are_the_signed_encoder_bit_for_bit(backend: str) -> None:
    x_seq = torch.randn(12, 50, generator=torch.Generator().manual_seed(1))
    pairs = run(SignedEncoder(pairs=True), x_seq, backend)
    framework = get_backend(backend)
    signed = framework.run(framework.neuron(SignedEncoder()), x_seq, 0.0)
    assert torch.equal(pairs[..., 0] - pairs[..., 1], signed)
    assert SignedEncoder(pairs=True).family is Family.BINARY
    assert (SignedEncoder(pairs=True).members, WeightedEncoder(pairs=True).members) == (2, 2)


def test_one_neuron_sends_what_a_pair_sends() -> None:
    increments = 3 * torch.randn(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    pairs, framework = run(WeightedEncoder(weights=WEIGHTS, pairs=True), increments), get_backend("reference")
    signed = framework.run(framework.neuron(WeightedEncoder(weights=WEIGHTS)), increments, 0.0)
    assert torch.equal(pairs[..., 0] - pairs[..., 1], signed)


def test_values_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="powers of two"):
        WeightedEncoder(weights=(4, 1))
    with pytest.raises(ValueError, match="True or False"):
        SignedEncoder(pairs=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes its weights from T"):
        WeightedEncoder().timed(None)
    with pytest.raises(ValueError, match='family="weighted"'):
        cx.Recipe(signed_encoder=WeightedEncoder())
    recipe = cx.Recipe(neuron=WeightedIF(), family="weighted", signed_encoder=WeightedEncoder())
    assert recipe.demands == ()
    assert recipe.timed(4).signed_encoder.weights == (8, 4, 2, 1)
