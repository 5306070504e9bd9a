"""Pairs of binary neurons against the signed neuron, bit for bit, and against the rule written out."""

from __future__ import annotations

import pytest
import torch

import conversion_ext as cx
from conversion_ext.backends import available, get_backend
from conversion_ext.types import Family
from tests.live import live

pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data")
PAIRS = cx.SignedIF(pairs=True)


def converted(neuron, backend="reference", tuners=(), **options):
    ann, x = live("residual", samples=8)
    recipe = cx.Recipe(cx.MeanSquaredError(), neuron, family=neuron.family, tuners=tuners)
    return x, cx.convert(ann, x, recipe=recipe, T=6, backend=backend, progress=False, **options)


@pytest.mark.parametrize("backend", available())
def test_on_and_off_neurons_send_zeros_and_ones_by_their_rule(backend):
    x_seq = torch.randn(12, 40, dtype=torch.float64)
    framework = get_backend(backend)
    spikes = framework.run(framework.neuron(PAIRS), x_seq.unsqueeze(2).expand(12, 40, 2), 0.5)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    for n in range(40):
        v, count = 0.5, 0
        for t in range(12):
            v += float(x_seq[t, n])
            on, off = int(v >= 1), int(v < 0 and count > 0)
            assert spikes[t, n].tolist() == [on, off]
            v, count = v - on + off, count + on - off


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("backend", available())
def test_networks_of_pairs_are_those_of_signed_neurons_bit_for_bit(backend, fold):
    x, pairs = converted(PAIRS, backend, fold=fold)
    _, signed = converted(cx.SignedIF(), backend, fold=fold)
    a, b = (cx.simulate(snn, x, 6) for snn in (pairs, signed))
    assert torch.equal(a.outputs, b.outputs)
    assert torch.equal(a.spikes_per_sample, b.spikes_per_sample)
    cx.reset(pairs)
    with torch.no_grad():
        torch.testing.assert_close(torch.stack([pairs(x) for _ in range(6)]).mean(0), a.output)


def test_tuners_find_the_same():
    tuners = (cx.WeightCompensation(), cx.tuners.InitialPotential())
    (x, pairs), (_, signed) = (converted(neuron, tuners=tuners) for neuron in (PAIRS, cx.SignedIF()))
    assert torch.equal(cx.simulate(pairs, x, 6).outputs, cx.simulate(signed, x, 6).outputs)


def test_reports_say_binary_and_twice_the_neurons():
    x, pairs = converted(PAIRS)
    _, signed = converted(cx.SignedIF())
    assert pairs.conversion.family is Family.BINARY
    assert signed.conversion.family is Family.SIGNED
    assert pairs.conversion.neurons == {key: 2 * n for key, n in signed.conversion.neurons.items()}
    assert pairs.conversion.latency_steps == 6
    assert cx.synops(pairs, x, 6).synops == cx.synops(signed, x, 6).synops
    with pytest.raises(ValueError, match="True or False"):
        cx.SignedIF(pairs=2)


def test_they_learn_and_are_kept(tmp_path):
    x, snn = converted(PAIRS)
    target = torch.randint(0, 5, (8,))
    result = cx.finetune(snn, [(x, target)] * 2, T=6, epochs=2, progress=False)
    assert result.history[-1].loss < result.history[1].loss
    cx.save(snn, tmp_path / "a.safetensors")
    assert torch.equal(cx.simulate(cx.load(tmp_path / "a.safetensors"), x, 6).outputs, cx.simulate(snn, x, 6).outputs)
