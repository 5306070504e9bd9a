"""Every recipe of the literature: it runs in every framework, and the law that its paper rests on holds."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.graph import info
from conversion_ext.neurons import IF
from conversion_ext.nn import ChannelScale, SoftLIF
from conversion_ext.normalizers import DataBased
from conversion_ext.types import Family, Steps
from tests import zoo
from tests.live import live_inputs, make_live
from tests.papers import bias_free, converted, deep, images, network_for

NAMES = cx.recipes.names()


@pytest.fixture(autouse=True)
def no_gradients():
    """Weights of these networks are compared with numbers, which torch warns of while they have gradients."""
    with torch.no_grad():
        yield


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_runs_in_every_framework(name, backend):
    """None has to be refused: each gives what it gives in plain PyTorch."""
    ann, x = network_for(name), images()
    T = 80 if name == "hunsberger2016" else 8  # a window that begins after 60 steps
    found = cx.simulate(converted(ann, x, name, backend=backend), x, T)
    expected = cx.simulate(converted(ann, x, name), x, T)
    torch.testing.assert_close(found.output, expected.output)
    assert found.total_steps == T + {"hao2023": 4, "hao2023_cos": 4}.get(name, 0)
    assert sum(float(rate.sum()) for rate in found.firing_rate.values()) > 0


def test_what_no_recipe_can_do_is_refused_in_every_framework_alike():
    """Here a network without the activations that the recipe reads its thresholds from."""
    for backend in available():
        with pytest.raises(cx.ConversionError, match="Trained"):
            converted(bias_free(), images(), "bu2022", backend=backend)


# Cao, Chen, Khosla 2015


def test_cao_names_what_his_networks_have_not():
    ann = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU6(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3))
    problems = {problem.path: problem.reason for problem in cx.check(ann, images(), recipe="cao2015")}
    assert problems.keys() == {"0", "1", "2", "4"}
    assert "bias" in problems["0"]
    assert "ReLU" in problems["1"]
    assert "max-pool" in problems["2"]
    with pytest.raises(cx.UnsupportedError, match="bias=False"):
        converted(ann, images(), "cao2015")
    assert not cx.check(bias_free(), images(), recipe="cao2015")
    ann[4].bias.data.zero_()
    assert "4" not in {problem.path for problem in cx.check(ann, images(), recipe="cao2015")}  # a bias of zeros is none


def test_cao_adapts_what_can_be_rewritten():
    """abs on the input and average pools; what is left is named. Pixels below 0 count by magnitude, in spikes."""
    ann = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3, bias=False)
    ).double()
    x = images(40).double() * 2 - 1
    with pytest.warns(UserWarning, match=r"train the network anew \(2\)"):
        ready = cx.recipes.adapt_cao2015(ann)
    expected = ann[3:](nn.functional.avg_pool2d(ann[:2](x.abs()), 2))
    torch.testing.assert_close(ready(x), expected)
    assert [type(m) for m in ann] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Linear]
    snn = converted(ready, x, "cao2015_adapted")
    images_of = {name: cx.simulate(snn, part, 60) for name, part in (("either sign", x), ("magnitude", x.abs()))}
    assert torch.equal(images_of["either sign"].outputs, images_of["magnitude"].outputs)
    assert {row.sees for row in snn.conversion.table() if row.kind == "synapse"} <= {Family.BINARY, Family.SIGNED}
    with pytest.raises(ValueError, match="cannot be negative"):
        cx.simulate(converted(ready, x, "cao2015"), x, 4)
    ann[0].register_parameter("bias", nn.Parameter(torch.ones(4).double()))
    problems = {p.path: p.remedy for p in cx.check(ann, x, recipe="cao2015_adapted")}
    assert problems.keys() == {"0", "2"}
    assert "adapt_cao2015" in problems["0"] or "bias=False" in problems["0"]


def test_cao_fires_every_ceil_of_one_over_z_steps():
    """An image of 0 and 1 spikes never or always; a hard reset then loses what is above the threshold each time."""
    ann, x = bias_free().double(), images().round().double()
    ann[0].get_parameter("weight").data.copy_((torch.randn(6, 1, 3, 3) * 16).round() / 16)
    recipe = replace(cx.recipes.get("cao2015"), normalizer=cx.normalizers.DataBased())
    snn = converted(ann, x, recipe)
    z = ann[0](x) / snn.conversion.thresholds["1"]
    spikes = cx.simulate(snn, x, 40).firing_rate["1"] * 40
    expected = torch.where(z > 0, (40 / (1 / z.clamp_min(1e-9)).ceil()).floor(), 0.0)
    assert ((spikes - expected).abs() * ((1 / z).frac().abs() > 1e-9)).sum() == 0  # a tie is a matter of the last bit
    assert list(snn.sites()) == ["1", "2.relay", "4", "6.output"]  # subsampling is a layer of neurons too


# Diehl et al. 2015


def test_model_normalization_lets_no_step_exceed_the_threshold():
    ann = bias_free().double()
    snn = cx.convert(
        ann, recipe="diehl2015_model", example_input=images().double(), backend="reference", progress=False
    )
    largest: dict[str, float] = {}
    for site in snn.sites().values():
        site.register_forward_pre_hook(
            lambda m, args: largest.__setitem__(m.key, max(largest.get(m.key, 0.0), args[0].max().item()))
        )
    for frame in (torch.rand(60, 1, 8, 8) < 0.7).double().split(1):
        snn.run((frame,), Steps(1))
    assert largest.keys() == snn.sites().keys()
    assert max(largest.values()) <= 1 + 1e-9
    weight = ann[0].get_parameter("weight").clamp_min(0).sum((1, 2, 3)).max()
    torch.testing.assert_close(snn.conversion.thresholds["1"], weight.detach())


def chain(scales: list[float]) -> tuple[nn.Sequential, Tensor]:
    """Layers of one neuron whose activations on the input 1 are the given ones."""
    layers: list[nn.Module] = []
    for before, now in zip([1.0, *scales], scales, strict=False):
        layer = nn.Linear(1, 1, bias=False).double()
        layer.weight.data.fill_(now / before)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers), torch.ones(1, 1).double()


def test_data_normalization_is_the_largest_weight_or_activation():
    ann, x = bias_free().double(), images().double()
    thresholds = converted(ann, x, "diehl2015_data").conversion.thresholds
    for key, layer, upto in (("1", 0, 2), ("4", 3, 5)):
        expected = torch.stack([ann[layer].get_parameter("weight").max(), ann[:upto](x).max()]).max()
        torch.testing.assert_close(thresholds[key], expected.detach())
    ann[3].get_parameter("weight").data[0] = 100.0
    ann[0].get_parameter("weight").data.mul_(1e-3)
    assert float(converted(ann, x, "diehl2015_data").conversion.thresholds["4"]) == 100.0


def test_the_factors_of_the_authors_code_are_kept_apart():
    ann, x = chain([3.0, 5.0, 2.0, 4.0])
    for compat, expected in (("", [3, 5, 2, 4]), ("diehl_code", [3, 5, 6, 20])):
        recipe = cx.Recipe(DataBased(compat=compat), IF(v_init=0.0))
        found = [float(v) for v in converted(ann, x, recipe).conversion.thresholds.values()]
        assert found == pytest.approx(expected)


# Rueckauer et al. 2017


def test_a_hard_reset_errs_by_a_factor_that_time_does_not_mend():
    """Rate of a soft reset: z - v(T)/T. Of a hard one: z / (1 + e) with e = n z - 1, n = ceil(1/z)."""
    z = 0.0201414 + 0.00997 * torch.arange(98, dtype=torch.float64)  # none whose multiple is 1, but for the last bit
    ann = nn.Sequential(nn.Linear(98, 98, bias=False), nn.ReLU()).double()
    ann[0].weight.data = torch.eye(98).double()
    x, T = torch.cat([z[None], torch.ones(1, 98).double()]), 1000
    for reset, name in ((cx.Reset.SUBTRACT, "rueckauer2017"), (cx.Reset.ZERO, "rueckauer2017_zero")):
        snn = converted(ann, x, replace(cx.recipes.get(name), normalizer=cx.Maximum()))
        rate = cx.simulate(snn, x, T).firing_rate["1"][0]
        n = (1 / z).ceil()
        expected = z if reset is cx.Reset.SUBTRACT else z / (1 + (n * z - 1))
        assert ((rate - expected).abs() <= 1.001 / T).all()


def test_biases_are_constant_currents_and_batchnorm_is_among_them():
    """Count of a soft reset from 0 under Wx + b: floor(T (Wx + b) / lambda); a black image leaves b alone."""
    ann = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 2)).double().eval()
    norm = ann[1]
    for value in (norm.weight, norm.bias, norm.running_mean):
        value.data.normal_()
    x = torch.cat([torch.zeros(1, 6), torch.rand(30, 6)]).double()
    snn = converted(ann, x, replace(cx.recipes.get("rueckauer2017"), normalizer=cx.Maximum()))
    z = ann[:2](x) / snn.conversion.thresholds["2"]
    count = (cx.simulate(snn, x, 50).firing_rate["2"] * 50).round()
    assert (z[0] > 0.05).sum() >= 5  # black, and yet it fires
    away = (50 * z - (50 * z).round()).abs() > 1e-9
    assert torch.equal(count[away], (50 * z).floor().clamp(0, 50)[away])


def test_the_percentile_is_that_of_positive_activations():
    ann, x = bias_free().double(), images(400).double()
    found = converted(ann, x, "rueckauer2017").conversion.thresholds
    for key, upto in (("1", 2), ("4", 5)):
        a = ann[:upto](x).flatten().numpy()
        assert float(found[key]) == pytest.approx(np.percentile(a[a > 0], 99.9), rel=2e-3)
    zeros = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    zeros[0].weight.data.fill_(1.0)
    x = torch.cat([-torch.ones(9000, 1), torch.linspace(0.001, 1, 1000)[:, None]])
    recipe = cx.recipes.get("rueckauer2017")
    everything = replace(recipe, normalizer=replace(recipe.normalizer, positive_only=False))
    assert float(converted(zeros, x, recipe).conversion.thresholds["1"]) == pytest.approx(0.999, rel=2e-3)
    assert float(converted(zeros, x, everything).conversion.thresholds["1"]) == pytest.approx(0.99, rel=2e-3)


@pytest.mark.parametrize(("gate", "weight"), [("fir", lambda t: 1 / t), ("average", lambda t: 1.0),
                                              ("exponential", lambda t: 1.005**-t)])  # fmt: skip
def test_a_gate_passes_the_spikes_of_the_input_with_the_highest_rate(gate, weight):
    """By hand, window after window, from the spikes recorded before the pool; ties go to the first."""
    ann = nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(18, 3),
    ).double()  # fmt: skip
    x, T = images(2).double(), 25
    snn = converted(ann, x, replace(cx.recipes.get("rueckauer2017"), max_pool=gate))
    passed: list[Tensor] = []
    snn.get_submodule("body.3").register_forward_pre_hook(lambda module, args: passed.append(args[0].clone()))
    spikes = cx.simulate(snn, x, T, record=("spikes",)).recorded["spikes"]["1"].numpy()
    found = torch.cat(passed).view(T, 2, 2, 3, 3).numpy()
    assert found.sum() > 50
    for n, c, i, j in np.ndindex(2, 2, 3, 3):
        window = (slice(max(2 * i - 1, 0), 2 * i + 2), slice(max(2 * j - 1, 0), 2 * j + 2))
        trains = spikes[:, n, c][(slice(None), *window)].reshape(T, -1)
        estimate = np.cumsum([train * weight(t) for t, train in enumerate(trains, 1)], axis=0)
        assert np.array_equal(found[:, n, c, i, j], trains[np.arange(T), estimate.argmax(1)])


def test_the_three_softmaxes():
    """v sums the last layer's currents; its softmax decides, or is how often each neuron spikes, or which one does."""
    ann = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 4), nn.Softmax(1)).double()
    x, T, copies = torch.rand(1, 5).double(), 6, 4000
    recipe = cx.recipes.get("rueckauer2017")
    means = cx.simulate(converted(ann[:3], x, recipe), x, T).outputs
    v = means[:, 0] * torch.arange(1, T + 1)[:, None]
    found = cx.simulate(converted(ann, x, recipe), x, T).outputs
    torch.testing.assert_close(found, means.softmax(-1))
    expected = v.softmax(-1).sum(0)
    for method in ("poisson", "external-poisson"):
        many = x.expand(copies, 5)
        counts = cx.simulate(converted(ann, x, replace(recipe, softmax=method)), many, T).output * T
        torch.testing.assert_close(counts, counts.round())
        spread = (v.softmax(-1) * (1 - v.softmax(-1))).sum(0)
        assert ((counts.mean(0) - expected).abs() <= 5 * (spread / copies).sqrt()).all()
        assert bool((counts.sum(1) == T).all()) == (method == "external-poisson")


# Hu, Tang, Pan 2018


def test_hu_scales_shortcuts_and_that_is_better_than_not_to():
    ann = make_live(zoo.Residual(), *zoo.IMAGE).double()
    x = live_inputs(ann, *zoo.IMAGE, samples=12)
    snn = converted(ann, x, "hu2018")
    (scale,) = [m for m in snn.body.modules() if isinstance(m, ChannelScale) and "shortcut" in _kinds(snn, m)]
    thresholds = snn.conversion.thresholds
    keys = list(thresholds)
    assert scale.scale.unique().item() == pytest.approx(float(thresholds[keys[0]] / thresholds[keys[2]]))
    ignored = copy.deepcopy(snn)
    for module in ignored.body.modules():
        if isinstance(module, ChannelScale) and module.scale.shape == scale.scale.shape:
            if torch.equal(module.scale, scale.scale):
                module.scale.fill_(1.0)
    wanted = ann(x).relu().detach()
    counts = [
        cx.simulate(s, x, 350).output * thresholds[keys[-1]] / 350 for s in (snn, ignored)
    ]  # spikes of output neurons, in ANN units
    errors = [float((count - wanted).norm() / wanted.norm()) for count in counts]
    assert errors[0] < 0.1 < errors[1]


def test_compensation_pays_where_potentials_start_from_zero():
    ann, x = deep(8)
    recipe = replace(cx.recipes.get("hu2018_compensated"), readout=cx.readouts.MeanOutput())
    error = [
        float((cx.simulate(converted(ann, x, r, T=100), x, 100, at=(100,)).output - ann(x)).norm())
        for r in (replace(recipe, tuners=()), recipe)
    ]
    assert error[1] < 0.7 * error[0]


def _kinds(snn, module) -> list[str]:
    names = {info(node).key for node in snn.body.graph.nodes if node.op == "call_module"
             and snn.body.get_submodule(str(node.target)) is module}  # fmt: skip
    return [row.kind for row in snn.conversion.table() if row.key in names]


# Hunsberger, Eliasmith 2016


def test_hunsberger_reads_his_window_of_the_rates_that_were_trained():
    torch.manual_seed(0)
    ann, x = bias_free(partial(SoftLIF, gamma=1e-3)).double(), images().double()
    ann[0].get_parameter("weight").data.mul_(6)
    snn = converted(ann, x, "hunsberger2016")
    found = cx.simulate(snn, x, 2000, at=(30, 2000))
    assert (found.outputs[0] == 0).all()  # the window has not begun
    assert (found.output - ann(x)).norm() < 0.1 * ann(x).norm()
    late = cx.simulate(snn, x, 200, readout=cx.readouts.MeanOutput()).outputs
    window = (200 * late[199] - 60 * late[59]) / 140
    torch.testing.assert_close(cx.simulate(snn, x, 200, at=(200,)).output, window)


# Bu et al. 2022 (AAAI), Li et al. 2021, Bu et al. 2025


def test_half_a_threshold_makes_the_mean_error_vanish():
    T = 8
    z = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    ann = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU()).double()
    ann[0].weight.data.fill_(1.0)
    x = torch.cat([z, torch.ones(1).double()])[:, None]
    bias = []
    for v_init in (0.0, 0.5):
        recipe = replace(cx.recipes.get("bu2022_opi"), normalizer=cx.Maximum(), neuron=IF(v_init=v_init))
        rate = cx.simulate(converted(ann, x, recipe), x, T).firing_rate["1"][:-1, 0]
        bias.append(float((rate - z).mean()))
    assert bias[0] == pytest.approx(-1 / (2 * T), rel=1e-3)
    assert bias[1] == pytest.approx(0.0, abs=1e-6)
    assert cx.recipes.get("bu2022_opi").neuron == IF(v_init=0.5)


def test_calibration_brings_means_closer_and_asks_for_t():
    torch.manual_seed(0)
    ann, x = bias_free().double(), images(64).double()
    with pytest.raises(ValueError, match="pass T="):
        converted(ann, x, "li2021", T=None)
    recipe = cx.recipes.get("li2021")
    recipes = (replace(recipe, tuners=()), recipe, cx.recipes.get("li2021_advanced"))
    gap = [float((cx.simulate(converted(ann, x, r, T=4), x, 4).output - ann(x)).mean(0).norm()) for r in recipes]
    assert gap[1] < gap[0]
    assert gap[2] < gap[0]


def test_balanced_thresholds_start_from_twice_the_mean():
    ann, x = bias_free().double(), images(20).double()
    first = ann[:2](x)
    found = converted(ann, x, "bu2025").conversion.thresholds["1"]
    twice = 2 * first.mean((0, 2, 3))
    torch.testing.assert_close(found[twice > 0], twice[twice > 0], check_dtype=False)
    assert (twice > 0).sum() >= 4
