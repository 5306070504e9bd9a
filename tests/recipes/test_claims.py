"""What the papers claim of their methods, on small networks of several seeds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.data import load
from conversion_ext.encoders import ConstantCurrent
from conversion_ext.neurons import IF
from conversion_ext.nn import QCFS, SoftLIF
from conversion_ext.readouts.mean_output import MeanOutput
from tests.papers import bias_free, converted, deep, error, fit, images

RUECKAUER = cx.recipes.get("rueckauer2017")
SEEDS = range(3)
pytestmark = pytest.mark.slow  # networks are trained, and what they decide differs from processor to processor


@pytest.fixture(autouse=True)
def no_gradients():
    """Networks are compared, not trained."""
    with torch.no_grad():
        yield


@pytest.mark.parametrize("seed", SEEDS)
def test_soft_reset_beats_hard_reset_in_depth(seed):
    """Rueckauer et al. 2017: what a hard reset discards is multiplied from layer to layer."""
    torch.manual_seed(seed)
    ann, x = deep(6)
    errors = {}
    for reset in cx.Reset:
        for depth in (1, 3, 6):
            part = ann[: 2 * depth]
            run = cx.simulate(converted(part, x, replace(RUECKAUER, neuron=IF(0.0, reset))), x, 256, at=(256,))
            errors[reset, depth] = error(run.output, part(x))
    assert all(errors[cx.Reset.SUBTRACT, depth] < 0.1 * errors[cx.Reset.ZERO, depth] for depth in (1, 3, 6))
    assert errors[cx.Reset.ZERO, 1] < 0.6 * errors[cx.Reset.ZERO, 3] < 0.6 * errors[cx.Reset.ZERO, 6] / 0.8


@pytest.mark.parametrize("seed", SEEDS)
def test_a_percentile_beats_the_maximum_where_there_is_an_outlier(seed):
    """Rueckauer et al. 2017: one image of 1,500 is twenty times as bright."""
    torch.manual_seed(seed)
    ann, x = bias_free().double(), images(1500).double()
    x[0] *= 20
    robust, largest = (
        error(cx.simulate(converted(ann, x, replace(RUECKAUER, normalizer=n)), x[1:40], 32).output, ann(x[1:40]))
        for n in (RUECKAUER.normalizer, cx.Maximum())
    )
    assert robust < 0.4 * largest


@pytest.mark.parametrize("seed", SEEDS)
def test_data_based_normalization_needs_an_eighth_of_the_steps_of_the_worst_case(seed):
    """Diehl et al. 2015. Without random input and hard reset, whose errors would be all that is seen."""
    torch.manual_seed(seed)
    ann, x = deep(4)
    after = {}
    for name in ("diehl2015_model", "diehl2015_data"):
        recipe = replace(cx.recipes.get(name), encoder=ConstantCurrent(), readout=MeanOutput(), neuron=IF(0.0))
        outputs = cx.simulate(converted(ann, x, recipe), x, 128, at=(16, 128)).outputs
        after[name] = [error(output, ann(x)) for output in outputs]
    assert after["diehl2015_data"][0] < 0.5 < 0.9 < after["diehl2015_model"][1]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_clamp_shortens_the_transient_of_a_deep_network(seed):
    """Rueckauer et al. 2017: the steps until the error stays below 15 %, those under the clamp included."""
    torch.manual_seed(seed)
    ann, x = deep(12)
    clamped = replace(RUECKAUER, tuners=(cx.tuners.VoltageClamp(steps=2),), readout=MeanOutput(24))
    settled = []
    for recipe in (RUECKAUER, clamped):
        errors = [error(output, ann(x)) for output in cx.simulate(converted(ann, x, recipe), x, 160).outputs]
        settled.append(max(t for t, e in enumerate(errors, 1) if e > 0.15) + 1)
    assert settled[1] < 0.7 * settled[0] < 0.7 * 160, settled


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_in_training_helps_where_few_spikes_are_read(seed):
    """Hunsberger, Eliasmith 2016: over six steps, in which the ripple of spikes is large."""
    pytest.importorskip("sklearn")
    data = load("digits")
    agreement, accuracy = [], []
    for noise in (0.0, 20.0):
        torch.manual_seed(seed)
        act = partial(SoftLIF, noise=noise)
        ann = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 48), nn.BatchNorm1d(48), act(), nn.Linear(48, 48), nn.BatchNorm1d(48), act(),
            nn.Linear(48, 10),
        )  # fmt: skip
        fit(ann, *data.train.tensors, epochs=8)
        snn = converted(ann, data.train.tensors[0][:8], "hunsberger2016")
        result = cx.evaluate(snn, [data.test.tensors], 66, at=(66,), ann=ann, progress=False)
        assert result.agreement is not None
        agreement.append(float(result.agreement[0]))
        accuracy.append(float(result.accuracy[0]))
    assert agreement[1] > agreement[0], agreement
    assert accuracy[1] > accuracy[0], accuracy


def for_four_steps(seed: int) -> nn.Module:
    """A deep network trained with QCFS for four steps on real digits."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for width in (64, *[32] * 7):
        layers += [nn.Linear(width, 32), nn.BatchNorm1d(32), nn.ReLU()]
    ann = cx.recipes.replace_relu(nn.Sequential(*layers, nn.Linear(32, 10)).train(), partial(QCFS, 4, threshold=2.0))
    fit(ann, *load("digits").train.tensors, epochs=12)
    return ann


def test_corrections_of_qcfs_beat_plain_qcfs_at_four_steps():
    """Hao et al. 2023, both: unevenness is what is left after training for four steps, and they mend it."""
    pytest.importorskip("sklearn")
    x, y = load("digits").test.tensors
    right = dict.fromkeys(("bu2022", "hao2023", "hao2023_cos"), 0)
    for seed in SEEDS:
        ann = for_four_steps(seed)
        agreement, errors = {}, {}
        for name in right:
            output = cx.simulate(converted(ann, x[:8], name), x, 4, at=(4,)).output
            right[name] += int((output.argmax(1) == y).sum())
            agreement[name] = float((output.argmax(1) == ann(x).argmax(1)).double().mean())
            errors[name] = error(output, ann(x))
        assert agreement["hao2023"] > agreement["bu2022"], agreement
        assert errors["hao2023"] < 0.9 * errors["bu2022"], errors
        assert agreement["hao2023_cos"] > 0.98, agreement
        assert errors["hao2023_cos"] < 0.1 * errors["bu2022"], errors
    assert right["hao2023"] > right["bu2022"], right
    assert right["hao2023_cos"] > right["bu2022"], right
