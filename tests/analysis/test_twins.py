"""The twin is the static limit: quantized activations, no time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import conversion_ext as cx
from tests import zoo
from tests.live import live_inputs, make_live


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("neuron", [cx.IF(), cx.neurons.BurstIF(3), cx.neurons.BurstIF(3, signed=True)], ids=repr)
@pytest.mark.parametrize("T", [1, 3, 8])
def test_the_twin_rounds_activations(T, neuron, fold):
    """Against the network written out by hand, with the closed form of the count law in the place of each ReLU."""
    ann = make_live(zoo.Inception(), *zoo.IMAGE).double()
    x = live_inputs(ann, *zoo.IMAGE)
    recipe = cx.Recipe(cx.Percentile(95.0), neuron, family=neuron.family)
    snn = cx.convert(ann, x, recipe=recipe, backend="reference", progress=False, fold=fold)
    thresholds = iter(snn.conversion.thresholds.values())

    def rounded(z):
        scale = next(thresholds).reshape(1, -1, 1, 1)
        return scale * torch.clamp(torch.floor(T * z / scale + 0.5), 0, T * neuron.levels) / T

    y = rounded(ann.stem(x))
    pooled = nn.functional.max_pool2d(y, 3, stride=1, padding=1)
    parts = [rounded(z) for z in (ann.one(y), ann.three(y), ann.pooled(pooled))]
    y = nn.functional.max_pool2d(torch.cat(parts, 1), 2).mean((2, 3))
    network = cx.twin(snn, T)
    torch.testing.assert_close(network(x), ann.head(y))
    torch.testing.assert_close(network(x), ann.head(y))  # it has no memory


@pytest.mark.parametrize("name", zoo.SMALL)
def test_the_twin_converges_to_the_network(name):
    build, shape = zoo.SMALL[name]
    ann = make_live(build(), *shape).double()
    x = live_inputs(ann, *shape)
    snn = cx.convert(ann, x, recipe=cx.Recipe(cx.Maximum()), backend="reference", progress=False)
    expected = tree_leaves(ann(x))
    coarse, fine = (tree_leaves(cx.twin(snn, T)(x)) for T in (4, 256))
    for e, a, b in zip(expected, coarse, fine, strict=True):
        assert (b - e).norm() < 0.02 * e.norm()
        assert (b - e).norm() < 0.5 * (a - e).norm() or (a - e).norm() < 1e-9


def test_forecast_is_the_accuracy_of_the_twins():
    ann = make_live(zoo.Residual(), *zoo.IMAGE)
    x = live_inputs(ann, *zoo.IMAGE, samples=40)
    y = ann(x).argmax(1)
    snn = cx.convert(ann, x, backend="reference", progress=False)
    found = cx.forecast(snn, [(x[:30], y[:30]), (x[30:], y[30:])], T=(1, 4, 64), progress=False)
    expected = [(cx.twin(snn, T)(x).argmax(1) == y).double().mean() for T in (1, 4, 64)]
    assert found.accuracy.tolist() == [float(e) for e in expected]
    assert found.accuracy[2] >= 0.8 > found.accuracy[0]
    assert found.made_for is None
    assert "made for" not in str(found)


@pytest.mark.parametrize(("recipe", "steps"), [("default", (1, 2, 4, 8, 16)), ("default-weighted", (3,))])
def test_a_forecast_tries_the_steps_that_a_network_can_run(recipe, steps):
    ann = make_live(zoo.Residual(), *zoo.IMAGE)
    x = live_inputs(ann, *zoo.IMAGE, samples=40)
    snn = cx.convert(ann, x, recipe=recipe, T=3, backend="reference", progress=False)
    assert cx.forecast(snn, (x, ann(x).argmax(1)), progress=False).T == steps


def test_a_forecast_of_a_network_made_for_one_number_of_steps_says_so():
    ann = make_live(zoo.Residual(), *zoo.IMAGE)
    x = live_inputs(ann, *zoo.IMAGE, samples=40)
    snn = cx.convert(ann, x, T=2, backend="reference", progress=False)
    found = cx.forecast(snn, (x, ann(x).argmax(1)), T=(2, 8), progress=False)
    assert found.made_for == 2
    assert "all of the network made for T=2" in str(found)
