"""Weight calibration descends on each layer's error, against what least squares can reach, and never makes it worse."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.tuners import WeightCalibration
from tests.live import live


def converted(ann: Any, x: Any, *tuners: Any, neuron: Any = cx.IF(), T: int = 3, **options: Any) -> Any:  # noqa: B008
    recipe = cx.Recipe(cx.Percentile(99.0), neuron, tuners=tuners, family=neuron.family)
    return cx.convert(ann, x, recipe=recipe, T=T, progress=False, **{"backend": "reference", **options})


def two_layers() -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 6)).double()
    return ann, torch.randn(300, 12, dtype=torch.float64)


def test_the_last_layer_comes_near_to_least_squares():
    """Its mean output is W r + b with r the rates of the layer before, which are the same in both networks."""
    ann, x = two_layers()
    wanted = ann(x).detach()
    plain, tuned = (converted(ann, x, *t) for t in ((), (WeightCalibration(steps=400, lr=0.05),)))
    before, after = (float((cx.simulate(snn, x, 3).output - wanted).square().sum()) for snn in (plain, tuned))
    rates = cx.simulate(plain, x, 3).firing_rate["1"] * plain.conversion.thresholds["1"]
    target = wanted - ann[2].bias.detach()
    least = float((rates @ torch.linalg.lstsq(rates, target).solution - target).square().sum())
    assert least <= after <= 1.02 * least < 0.9 * before


def test_a_layer_before_neurons_is_judged_by_what_they_say():
    """The second site's rates under the constant mean current, written out, before and after."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    x = torch.randn(300, 12, dtype=torch.float64)
    a = ann[:4](x).detach()
    errors = []
    for tuners in ((), (WeightCalibration(steps=200, lr=0.03),)):
        snn = converted(ann, x, *tuners, fold=False)
        rates = cx.simulate(snn, x, 3).firing_rate["1"] * snn.conversion.thresholds["1"]
        layer = dict(snn.body.named_modules())["2"]
        threshold = snn.conversion.thresholds["3"]
        q = threshold / 3 * torch.floor(3 * layer(rates) / threshold + 0.5).clamp(0, 3)
        errors.append((q - a).square().sum().item())
        assert torch.equal(layer.bias, ann[2].bias)
    assert errors[1] < 0.95 * errors[0]


def test_what_does_not_help_is_taken_back():
    ann, x = two_layers()
    plain, tuned = (converted(ann, x, *t) for t in ((), (WeightCalibration(steps=5, lr=1e4),)))
    assert torch.equal(cx.simulate(plain, x, 3).outputs, cx.simulate(tuned, x, 3).outputs)


@pytest.mark.parametrize("neuron", [cx.IF(), cx.neurons.BurstIF(3, signed=True)], ids=repr)
@pytest.mark.parametrize("name", ["chain", "residual", "bottleneck", "tied"])
def test_outputs_come_closer_and_the_ann_stays(name, neuron):
    ann, x = live(name, samples=48, dtype=torch.float32)
    state = copy.deepcopy(ann.state_dict())
    wanted = ann(x).detach()
    errors = []
    for tuners in ((), (WeightCalibration(steps=30),)):
        snn = converted(ann, list(x.split(20)), *tuners, neuron=neuron)
        errors.append(float((cx.simulate(snn, x, 3).output - wanted).norm()))
    assert errors[1] < (1.0 if name == "tied" else 0.95) * errors[0] or errors[0] == errors[1]
    assert all(torch.equal(a, b) for a, b in zip(state.values(), ann.state_dict().values(), strict=True))


def test_it_refuses_what_is_no_number_of_steps_or_rate():
    for options in ({"steps": 0}, {"steps": 1.5}, {"lr": 0.0}, {"lr": float("nan")}):
        with pytest.raises(ValueError, match=rf"WeightCalibration\({next(iter(options))}="):
            WeightCalibration(**options)
