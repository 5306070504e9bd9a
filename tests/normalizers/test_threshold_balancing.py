"""Local threshold balancing, against its recursion written out and against SpikingJelly's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.normalizers import ThresholdBalancing


def network() -> Any:
    torch.manual_seed(3)
    ann = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 3),
    ).eval()  # fmt: skip
    for layer in (ann[4], ann[7]):
        nn.init.normal_(layer.weight, std=0.3)
        nn.init.constant_(layer.bias, 0.5)  # no channel is dead
    return ann


def thresholds(ann: Any, batches: list[Tensor], **options) -> dict[str, Tensor]:
    recipe = cx.Recipe(ThresholdBalancing(**options))
    return cx.convert(ann, batches, recipe=recipe, backend="reference", progress=False).conversion.thresholds


def test_the_first_batch_gives_twice_the_mean():
    ann, x = network(), torch.randn(50, 2, 6, 6)
    first = ann[:3](x)
    found = thresholds(ann, [x])
    torch.testing.assert_close(found["2"], 2 * first.mean((0, 2, 3)))
    whole = thresholds(ann, [x], granularity=cx.PerLayer())
    torch.testing.assert_close(whole["2"], 2 * first.mean())


def test_a_constant_activation_gives_twice_its_value_and_stays():
    ann, x = nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), torch.tensor([0.25, 1.0, 3.0]).expand(10, 3).contiguous()
    for passes in (1, 5):
        assert thresholds(ann, [x], passes=passes)["0"].tolist() == [0.5, 2.0, 6.0]


def test_thresholds_only_grow_until_nothing_exceeds_them():
    ann, x = network(), torch.randn(200, 2, 6, 6)
    last = {key: torch.zeros(()) for key in ("2", "5", "8")}
    for passes in (1, 2, 8, 64, 512):
        found = thresholds(ann, list(x.split(50)), passes=passes)
        assert all((found[key] >= last[key]).all() for key in last)
        last = found
    largest = ann[:3](x).amax((0, 2, 3))
    assert (last["2"] > 0.8 * largest).all()


def test_each_layer_sees_what_the_updated_thresholds_let_through():
    """The recursion over three batches, layer after layer, written out."""
    ann, batches = network(), list(torch.randn(90, 2, 6, 6).split(30))
    expected = [torch.zeros(1, 6, 1, 1), torch.zeros(1, 8, 1, 1), torch.zeros(1, 10)]
    with torch.no_grad():
        for batch in batches:
            x = batch
            for index, layers in enumerate((ann[:3], ann[3:6], ann[6:9])):
                a, dims = layers(x), (0, 2, 3) if index < 2 else (0,)
                expected[index] = expected[index] + 2 * torch.relu(a - expected[index]).mean(dims, keepdim=True)
                x = torch.minimum(a, expected[index])
    found = thresholds(ann, batches)
    for key, value in zip(("2", "5", "8"), expected, strict=True):
        torch.testing.assert_close(found[key], value.flatten())
    plain = ann[:6](batches[0]).mean((0, 2, 3)) * 2
    assert not torch.allclose(thresholds(ann, batches[:1])["5"], plain, rtol=1e-2)  # clipping does change something


def test_passes_repeat_the_data():
    ann, batches = network(), list(torch.randn(60, 2, 6, 6).split(20))
    twice = cx.convert(
        ann, batches, recipe=cx.Recipe(ThresholdBalancing(passes=2)), backend="reference", progress=False
    )
    once = thresholds(ann, batches * 2)
    assert all(torch.equal(value, once[key]) for key, value in twice.conversion.thresholds.items())
    assert twice.conversion.samples == 60
    with pytest.raises(ValueError, match="passes=0"):
        ThresholdBalancing(passes=0)


def test_activations_that_are_no_numbers_are_refused():
    ann = network()
    with torch.no_grad():
        ann[4].weight.fill_(3e38)
    with pytest.raises(cx.CalibrationError, match=r"activations of 5 hold NaN or infinite"):
        thresholds(ann, [torch.randn(4, 2, 6, 6)])


def test_equals_the_recipe_of_spikingjelly_bit_for_bit():
    pytest.importorskip("spikingjelly")
    recipes = pytest.importorskip("spikingjelly.activation_based.ann2snn.recipes")
    from spikingjelly.activation_based import ann2snn

    # Without BatchNorm, which SpikingJelly folds in float32 and we in float64; channels last, as ours is calibrated.
    ann = nn.Sequential(*[layer for layer in network() if not isinstance(layer, nn.BatchNorm2d)])
    ann = ann.to(memory_format=torch.channels_last)
    batches = list(torch.randn(120, 2, 6, 6).to(memory_format=torch.channels_last).split(30))
    ours = thresholds(ann, batches)
    recipe = recipes.LocalThresholdBalancingRecipe(batches)
    theirs = ann2snn.Converter(recipe).convert(ann)
    scalers = [m.scale for name, m in theirs.named_modules() if name.endswith("scaler1")]
    assert len(scalers) == len(ours) == 3
    for value, scale in zip(ours.values(), scalers, strict=True):
        assert torch.equal(value, scale.flatten())
