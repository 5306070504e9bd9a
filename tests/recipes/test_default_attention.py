"""The recipe for transformers: spikes into every linear layer, thresholds per feature, less error at few steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.neurons import SignedEncoder
from conversion_ext.types import Family
from tests.capture.test_attention import NETWORKS, POSITIONS, E, randomized

SPIKES = (Family.BINARY, Family.SIGNED)


def network(name: str = "encoder, norms first") -> tuple[nn.Module, Tensor, Tensor]:
    ann = randomized(NETWORKS[name]())
    x = torch.randn(40, POSITIONS, E, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return ann, x[:32], x[32:]


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("name", ["encoder, norms first", "unbind", "positions first"])
def test_every_linear_layer_but_those_of_the_input_receives_spikes(name: str, backend: str) -> None:
    ann, calibration, x = network(name)
    snn = cx.convert(ann, calibration, T=4, recipe="default-attention", backend=backend, progress=False)
    layers = [row for row in snn.conversion.table() if row.kind == "synapse"]
    fed_by_input = [row for row in layers if row.sees is Family.ANALOG]
    assert len(fed_by_input) <= 1
    assert all(row.sees in SPIKES for row in layers if row not in fed_by_input)
    spikes = cx.simulate(snn, x, 4, record=("spikes",)).recorded["spikes"]
    assert spikes
    assert all(set(train.unique().tolist()) <= {-1.0, 0.0, 1.0} for train in spikes.values())


def test_thresholds_are_per_feature_and_their_error_is_least() -> None:
    """One threshold for each of the E features; less error at T = 4 than with room above the maximum."""
    ann, calibration, x = network()
    expected = ann(x).detach()
    errors = []
    chosen = cx.recipes.get("default-attention")
    room = cx.Recipe(cx.Maximum(granularity=cx.PerChannel(-1)), relay=True, signed_encoder=SignedEncoder(headroom=1.25))
    for recipe in (chosen, room):
        snn = cx.convert(ann, calibration, T=4, recipe=recipe, backend="reference", progress=False)
        errors.append(float((cx.simulate(snn, x, 4).output - expected).norm() / expected.norm()))
        sizes = {threshold.numel() for threshold in snn.conversion.thresholds.values()}
        assert (1 in sizes) == (recipe is room)
    assert errors[0] < 0.7 * errors[1]


def test_errors_fall_with_the_number_of_steps() -> None:
    ann, calibration, x = network()
    expected = ann(x).detach()
    errors = []
    for T in (4, 16, 64):
        snn = cx.convert(ann, calibration, T=T, recipe="default-attention", backend="reference", progress=False)
        errors.append(float((cx.simulate(snn, x, T).output - expected).norm()))
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.6 * errors[1]


def test_a_signed_threshold_is_that_of_the_magnitudes() -> None:
    """Against a search by hand: the least squared error of |x| rounded to T levels, feature by feature."""
    ann = nn.Sequential(nn.Linear(6, 6), nn.LeakyReLU(0.5), nn.Linear(6, 3)).double()
    x = torch.randn(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    recipe = cx.Recipe(cx.MeanSquaredError(granularity=cx.PerChannel(-1)), signed_encoder=SignedEncoder(headroom=None))
    T = 4
    snn = cx.convert(ann, x, T=T, recipe=recipe, backend="reference", progress=False)
    (threshold,) = snn.conversion.thresholds.values()
    magnitudes = nn.functional.leaky_relu(ann[0](x), 0.5).abs().detach()

    def error(thresholds: Tensor) -> Tensor:
        step = thresholds / T
        return (magnitudes - (magnitudes / step + 0.5).floor().clamp(0, T) * step).square().sum(0)

    grid = torch.stack([error(magnitudes.amax(0) * share) for share in torch.arange(0.2, 1.01, 0.005)]).amin(0)
    assert (error(threshold) <= 1.02 * grid).all()
