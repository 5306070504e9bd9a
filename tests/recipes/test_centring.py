"""Features around 0: the function stays, and outliers cost neither levels nor spikes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.recipes import center_features
from tests.capture.test_attention import NETWORKS, POSITIONS, E, randomized
from tests.contract.test_transformers import FAMILIES, network

WIDTH, OUTLIERS, SHIFT = 16, (3, 7), 40.0


def data(samples: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_outliers() -> nn.Module:
    """Attention and an MLP, two features of whose LayerNorms stay far from 0, as trained transformers have them."""
    ann: Any = randomized(
        nn.TransformerEncoderLayer(WIDTH, 2, 32, activation="gelu", batch_first=True, norm_first=True)
    )
    with torch.no_grad():
        for norm in (ann.norm1, ann.norm2):
            norm.weight.fill_(1.0)
            norm.bias[list(OUTLIERS)] = SHIFT
        for layer in (ann.self_attn.out_proj, ann.linear2):  # so that what is told apart is not lost in the shortcuts
            layer.weight.mul_(4.0)
    return ann


@pytest.mark.parametrize("above", [0.0, 1.0])
@pytest.mark.parametrize("name", ["encoder, norms first", "positions first", "grouped heads", "cross", "unbind"])
def test_the_function_stays(name: str, above: float) -> None:
    ann = randomized(NETWORKS[name]())
    x = data(24, POSITIONS, E)
    before = {key: value.clone() for key, value in ann.state_dict().items()}
    centred = center_features(ann, x[:16], above=above)
    with torch.no_grad():
        torch.testing.assert_close(centred(x[16:]), ann(x[16:]), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(before[key], value) for key, value in ann.state_dict().items())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "convnext"])
def test_the_function_of_vision_transformers_stays(name: str) -> None:
    """Windows of Swin are padded with zeros behind the LayerNorm: the offset is taken where the layer reads."""
    ann, x = network(name)
    with torch.no_grad():
        torch.testing.assert_close(center_features(ann, x, above=0.0)(x[:3]), ann(x[:3]), rtol=1e-9, atol=1e-9)


def test_features_in_front_of_every_layer_lie_around_zero() -> None:
    ann, x = with_outliers(), data(64, 5, WIDTH)
    centred = center_features(ann, x)
    means: list[Tensor] = []
    for layer in centred.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(
                lambda _, given: means.append((given[0].mean((0, 1)) / given[0].std()).abs())
            )
    with torch.no_grad():
        centred(x)
    assert len(means) == 6
    assert max(float(mean.max()) for mean in means) <= 1.0


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("recipe", ["default-attention", "default-attention-weighted"])
def test_outliers_cost_neither_levels_nor_spikes(recipe: str, backend: str) -> None:
    ann, calibration, x = with_outliers(), data(64, 5, WIDTH), data(16, 5, WIDTH, seed=1)
    with torch.no_grad():
        expected = ann(x)
    errors, spikes = [], []
    for model in (ann, center_features(ann, calibration)):
        snn = cx.convert(model, calibration, T=4, recipe=recipe, backend=backend, progress=False)
        found = cx.simulate(snn, x, 4)
        errors.append(float((found.output - expected).norm()))
        spikes.append(float(found.spikes_per_sample.mean()))
    assert errors[1] < 0.5 * errors[0]
    assert spikes[1] < 0.95 * spikes[0]


def test_a_scale_moved_into_the_layer_norm_changes_no_spike() -> None:
    """Features have thresholds of their own, which take up any scale; by powers of two to the bit."""
    ann, x = with_outliers(), data(32, 5, WIDTH)
    scaled: Any = with_outliers()
    scale = 2.0 ** torch.arange(WIDTH).remainder(5).double()
    with torch.no_grad():
        scaled.norm2.weight.div_(scale)
        scaled.norm2.bias.div_(scale)
        scaled.linear1.weight.mul_(scale)
        torch.testing.assert_close(scaled(x), ann(x), rtol=1e-10, atol=1e-10)
    runs, recipe = [], replace(cx.recipes.get("default-attention"), tuners=())
    for model in (ann, scaled):
        snn = cx.convert(model, x, T=4, recipe=recipe, backend="reference", progress=False)
        runs.append(cx.simulate(snn, x[:4], 4, record=("spikes",)).recorded["spikes"])
    assert runs[0].keys() == runs[1].keys()
    assert all(torch.equal(train, runs[1][key]) for key, train in runs[0].items())


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(ValueError, match=r"above=-1\): give a number of standard deviations >= 0"):
        center_features(nn.Linear(2, 2), torch.rand(4, 2), above=-1)
    with pytest.raises(cx.CalibrationError, match="holds no batch"):
        center_features(nn.Linear(2, 2), [])


def test_a_layer_called_twice_keeps_its_inputs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.relu(self.layer(x) + 3.0) + 9.0)

    ann, x = Twice().double().eval(), data(32, 4)
    centred = center_features(ann, x)
    assert torch.equal(centred(x), ann(x))
