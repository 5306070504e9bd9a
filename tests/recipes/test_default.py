"""The default recipes on real digits: tuning for T pays at T, and more steps than T do no harm."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import conversion_ext as cx
from conversion_ext.data import load
from conversion_ext.demo.demo import network, train

FAMILIES = ("default", "default-signed", "default-multilevel")


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    data, ann = load("digits"), network()
    train(ann, data.train, epochs=4, progress=False)
    return ann.eval(), data


def accuracy(digits, recipe, T, at):
    ann, data = digits
    calibration = data.calibration.tensors[0]
    snn = cx.convert(ann, calibration, recipe=recipe, T=T, backend="reference", progress=False)
    found = cx.evaluate(snn, data.test.tensors, max(at), at=at, ann=ann, progress=False)
    return found.accuracy.tolist(), found.ann_accuracy


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_tuning_for_few_steps_pays_and_more_steps_do_no_harm(digits, name):
    (few, many), ann = accuracy(digits, name, 2, (2, 8))
    (untuned,), _ = accuracy(digits, name, None, (2,))
    assert few > untuned - 0.005
    assert ann - few < 0.05
    assert many > few - 0.01
    if name == "default":
        assert ann - few < 0.7 * (ann - untuned)


@pytest.mark.parametrize("name", [*FAMILIES, "default-tuned"])
def test_without_T_nothing_is_tuned(name):
    tuned, plain = cx.recipes.for_steps(name, 4), cx.recipes.for_steps(name, None)
    assert tuned == cx.recipes.get(name)
    assert (plain.normalizer, plain.tuners) == (cx.Percentile(99.9), ())
    assert (plain.neuron, plain.family) == (tuned.neuron, tuned.family)
    with pytest.raises(ValueError, match="pass T="):  # a recipe of one's own does what it says
        cx.convert(torch.nn.ReLU(), torch.rand(2, 3), recipe=replace(tuned, max_pool="fir"), backend="reference")


def test_a_value_that_is_refused_leaves_nothing_behind():
    with pytest.raises(TypeError, match="register a Recipe"):
        cx.recipes.register_recipe("refused", "default", use="Never.")
    with pytest.raises(TypeError, match=r"'refused' without T is 'default'; register a Recipe\."):
        cx.recipes.register_recipe("refused", cx.Recipe(), without_T="default", use="Never.")
    assert cx.recipes.use_of("refused") == ""
    assert "refused" not in cx.recipes.names()
    with pytest.raises(ValueError, match="registered already"):
        cx.recipes.register_recipe("default", cx.Recipe(), use="Never.")
    assert cx.recipes.use_of("default") != "Never."
