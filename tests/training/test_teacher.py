"""What a teacher says layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.simulation.samples import Batch
from conversion_ext.training import Distillation, RateDistillation, Training
from conversion_ext.training.teacher import Teacher
from tests import zoo
from tests.live import live_inputs, make_live

T = 4


def network(name: str = "residual", **options):
    torch.manual_seed(0)
    build, shape = zoo.SMALL[name]
    ann = make_live(build(), *shape)
    x = live_inputs(ann, *shape, samples=24)
    return ann, cx.convert(ann, x, backend="reference", progress=False, **options), x


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", ["residual", "functional"])
def test_its_rates_are_what_many_steps_of_an_exact_conversion_tend_to(name, fold):
    """Without tuners, thresholds at the maximum: nothing is clipped and every rate tends to a / lambda."""
    ann, snn, x = network(name, recipe=cx.Recipe(cx.Maximum()), fold=fold)
    teacher = Teacher(ann, snn, torch.device("cpu"), layers=True)
    said = teacher.of(Batch((x,)))
    torch.testing.assert_close(said.output, ann(x))
    rates = cx.simulate(snn, x, 512, at=(512,)).firing_rate
    assert said.rates.keys() == rates.keys()
    for key, rate in rates.items():
        assert said.rates[key].max() > 0.5
        torch.testing.assert_close(said.rates[key], rate, atol=0.05, rtol=0)


def test_it_is_traced_in_full_precision_whatever_that_of_the_training():
    """A mean that BatchNorm takes away hides what bfloat16 tells apart, and folded it hides less."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    nn.init.constant_(conv.bias, 8.0)  # type: ignore[arg-type]
    norm.running_mean, norm.running_var = torch.full((4,), 8.0), torch.full((4,), 0.01)
    ann = nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()
    x = torch.rand(16, 3, 6, 6)
    snn = cx.convert(ann, x, T=T, backend="reference", progress=False)
    with torch.autocast("cpu", torch.bfloat16):
        said = Teacher(ann, snn, torch.device("cpu"), layers=True).of(Batch((x,)))
    assert said.output.dtype == torch.bfloat16
    assert said.rates.keys() == snn.sites().keys()


def test_activations_beyond_a_threshold_ask_for_all_that_a_neuron_can_say():
    ann, snn, x = network(recipe=cx.Recipe(cx.Percentile(60.0)))
    rates = Teacher(ann, snn, torch.device("cpu"), layers=True).of(Batch((x,))).rates
    assert all(rate.max() == 1 and rate.min() == 0 for rate in rates.values())


def test_distance_of_rates_is_its_formula():
    a, b = torch.rand(3, 4, dtype=torch.float64, requires_grad=True), torch.rand(3, 2, 5, dtype=torch.float64)
    wanted: dict[str, Tensor] = {"a": torch.rand(3, 4).double(), "b": torch.rand(3, 2, 5).double()}
    found = RateDistillation(0.5)({"a": a, "b": b, "relay": b}, wanted)
    parts = []
    for rate, target in ((a, wanted["a"]), (b, wanted["b"])):
        pairs = zip(rate.flatten().tolist(), target.flatten().tolist(), strict=True)
        parts.append(sum((r - w) ** 2 for r, w in pairs) / rate.numel())
    assert found.item() == pytest.approx(0.5 * sum(parts) / 2)
    assert torch.autograd.gradcheck(lambda x: RateDistillation()({"a": x}, wanted), a)
    with pytest.raises(ValueError, match=r"none of the sites c; use the ANN converted"):
        RateDistillation()({"c": a}, wanted)


@pytest.mark.parametrize("gradient", ["bptt", "online", "rate"])
def test_fine_tuning_draws_rates_to_those_of_the_ann(gradient):
    ann, snn, x = network(recipe=cx.Recipe(cx.Maximum(), cx.IF(v_init=0.0)))  # neurons that fire too seldom
    with torch.no_grad():
        y = ann(x).argmax(1)
    options = {"T": T, "epochs": 6, "teacher": ann, "gradient": gradient, "progress": False}
    options["training"] = Training(rate=2e-3)
    both = (Distillation(weight=0.0), RateDistillation(100.0))
    result = cx.finetune(snn, (x, y), distillation=both, loss=lambda outputs, target: 0 * outputs.sum(), **options)
    losses = [epoch.loss for epoch in result.history[1:]]
    assert losses[-1] < 0.9 * losses[0]


def test_bad_terms_are_answered_in_a_sentence():
    ann, snn, x = network()
    with pytest.raises(TypeError, match=r"distillation=3: give Distillation\(\), RateDistillation\(\)"):
        cx.finetune(snn, (x, torch.zeros(len(x), dtype=torch.long)), T=T, teacher=ann, distillation=3, progress=False)
