"""Every recipe of the literature: the law that its paper rests on, and the claims that a small network can show."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.data import load
from conversion_ext.encoders import ConstantCurrent
from conversion_ext.neurons import IF
from conversion_ext.nn import QCFS, ChannelScale, SoftLIF
from conversion_ext.normalizers import DataBased
from conversion_ext.types import Family, Steps
from tests import zoo
from tests.live import live_inputs, make_live

pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data", "ignore:Never active with these")
NAMES = cx.recipes.names()


@pytest.fixture(autouse=True)
def no_gradients():
    """Weights of these networks are compared with numbers, which torch warns of while they have gradients."""
    with torch.no_grad():
        yield


def bias_free(activation=nn.ReLU) -> nn.Sequential:
    """A network that every recipe takes, given the activation that it asks for."""
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), activation(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3, bias=False), activation(),
        nn.Flatten(), nn.Linear(8, 5, bias=False),
    )  # fmt: skip
    for layer in (network[0], network[3]):
        nn.init.kaiming_normal_(layer.get_parameter("weight"))
    return network


def network_for(name: str) -> nn.Module:
    """The network above as the recipe asks for it."""
    if name == "hunsberger2016":
        return bias_free(SoftLIF)
    if name in ("bu2022", "hao2023", "hao2023_cos"):
        return bias_free(partial(QCFS, 4, 0.5))
    return cx.recipes.adapt_cao2015(bias_free()) if name == "cao2015_adapted" else bias_free()


@torch.enable_grad()
def fit(ann: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    """Train in place and leave in evaluation mode."""
    optimizer = torch.optim.SGD(ann.train().parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(ann(x[index]), y[index]).backward()
            optimizer.step()
    ann.eval()


def deep(layers: int) -> tuple[nn.Module, Tensor]:
    """A chain of linear layers and ReLUs, and inputs in [0, 1]."""
    ann = nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(40, 40, bias=False), nn.ReLU())]).double()
    for layer in ann[::2]:
        nn.init.kaiming_normal_(layer.get_parameter("weight"))
    return ann, torch.rand(60, 40).double()


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def converted(ann: nn.Module, x: Tensor, recipe: str | cx.Recipe, **options):
    return cx.convert(ann, x, recipe=recipe, progress=False, **{"backend": "reference", "T": 8, **options})


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


def test_data_normalization_needs_fewer_steps_than_the_worst_case():
    ann, x = deep(4)
    error = []
    for name in ("diehl2015_model", "diehl2015_data"):
        # Without the noise of the input and the error of the hard reset, which would be all that is seen.
        recipe = replace(
            cx.recipes.get(name), encoder=ConstantCurrent(), readout=cx.readouts.MeanOutput(), neuron=IF(0.0)
        )
        gap = cx.simulate(converted(ann, x, recipe), x, 128).output - ann(x)
        error.append((gap.norm() / ann(x).norm()).item())
    assert error[1] < 0.5 < error[0]


# Rueckauer et al. 2017


def test_a_hard_reset_errs_by_a_factor_that_time_does_not_mend():
    """Rate of a soft reset: z - v(T)/T. Of a hard one: z / (1 + e) with e = n z - 1, n = ceil(1/z)."""
    z = 0.0201414 + 0.00997 * torch.arange(98, dtype=torch.float64)  # none whose multiple is 1, but for the last bit
    ann = nn.Sequential(nn.Linear(98, 98, bias=False), nn.ReLU()).double()
    ann[0].weight.data = torch.eye(98).double()
    recipe = cx.recipes.get("rueckauer2017")
    x, T = torch.cat([z[None], torch.ones(1, 98).double()]), 1000
    for reset in (cx.Reset.SUBTRACT, cx.Reset.ZERO):
        snn = converted(ann, x, replace(recipe, normalizer=cx.Maximum(), neuron=IF(0.0, reset)))
        rate = cx.simulate(snn, x, T).firing_rate["1"][0]
        n = (1 / z).ceil()
        expected = z if reset is cx.Reset.SUBTRACT else z / (1 + (n * z - 1))
        assert ((rate - expected).abs() <= 1.001 / T).all()


def test_soft_reset_beats_hard_reset_in_depth():
    ann, x = deep(6)
    recipe = cx.recipes.get("rueckauer2017")
    soft, hard = (
        (cx.simulate(converted(ann, x, replace(recipe, neuron=IF(0.0, r))), x, 256).output - ann(x)).norm()
        for r in (cx.Reset.SUBTRACT, cx.Reset.ZERO)
    )
    assert soft < 0.5 * hard


def test_a_clamp_keeps_the_transient_of_a_deep_network_out():
    """At equal T, reading the steps behind the clamp. In this simulator discarding them alone does as much."""
    ann, x = deep(12)
    recipe = replace(cx.recipes.get("rueckauer2017"), neuron=IF(0.0))
    clamped = replace(recipe, tuners=(cx.tuners.VoltageClamp(steps=2),), readout=cx.readouts.MeanOutput(24))
    error = [
        float((cx.simulate(converted(ann, x, r), x, 128, at=(128,)).output - ann(x)).norm()) for r in (recipe, clamped)
    ]
    assert error[1] < 0.7 * error[0]


def test_a_percentile_beats_the_maximum_where_there_is_an_outlier():
    ann, x = bias_free().double(), images(1500).double()
    x[0] *= 20
    recipe = cx.recipes.get("rueckauer2017")
    error = [
        (cx.simulate(converted(ann, x, replace(recipe, normalizer=n)), x[1:40], 32).output - ann(x[1:40])).norm()
        for n in (recipe.normalizer, cx.Maximum())
    ]
    assert error[0] < 0.5 * error[1]


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
    names = {node.meta.get("key") for node in snn.body.graph.nodes if node.op == "call_module"
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


@pytest.mark.slow
def test_training_with_noise_helps_where_few_spikes_are_read():
    """Agreement with the ANN over a window of ten steps, in which the ripple of spikes is large; three networks."""
    data = load("digits")
    agreement = {}
    for noise in (0.0, 20.0):
        found = []
        for seed in range(3):
            torch.manual_seed(seed)
            act = partial(SoftLIF, noise=noise)
            ann = nn.Sequential(
                nn.Flatten(), nn.Linear(64, 96), nn.BatchNorm1d(96), act(),
                nn.Linear(96, 96), nn.BatchNorm1d(96), act(), nn.Linear(96, 10),
            )  # fmt: skip
            fit(ann, *data.train.tensors, epochs=10)
            snn = converted(ann, data.train.tensors[0][:8], "hunsberger2016")
            result = cx.evaluate(snn, [data.test.tensors], 70, at=(70,), ann=ann, progress=False)
            assert result.agreement is not None
            found.append(float(result.agreement[0]))
        agreement[noise] = sum(found) / 3
    assert agreement[20.0] > agreement[0.0] + 0.01, agreement


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


# Bu et al. 2022 (ICLR), Hao et al. 2023


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained with QCFS for four steps on real digits, and data that it has not seen."""
    torch.manual_seed(0)
    data = load("digits")
    x, y = data.train.tensors
    plain = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1),
        nn.BatchNorm2d(12), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10),
    )  # fmt: skip
    ann = cx.recipes.replace_relu(plain.train(), partial(QCFS, 4, threshold=2.0))
    fit(ann, x, y, epochs=14)
    images, labels = data.test.tensors
    return ann, images, labels


def test_on_a_network_trained_for_it_few_steps_are_enough_and_corrections_help(trained):
    ann, x, y = trained
    accuracy = {
        name: cx.evaluate(converted(ann, x[:8], name), [(x, y)], 4, ann=ann, progress=False)
        for name in ("bu2022", "hao2023", "hao2023_cos")
    }
    at_four = {name: float(found.accuracy[-1]) for name, found in accuracy.items()}
    ann_accuracy = accuracy["bu2022"].ann_accuracy
    assert ann_accuracy is not None
    assert ann_accuracy > 0.95
    assert at_four["hao2023"] > at_four["bu2022"], at_four
    assert at_four["hao2023_cos"] > at_four["bu2022"], at_four
    assert at_four["hao2023_cos"] > ann_accuracy - 0.03, at_four
    assert accuracy["hao2023"].total_steps == 8
