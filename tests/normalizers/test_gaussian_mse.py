"""The least quantization error for normal currents, against integration and a search over all thresholds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.normalizers import GaussianMSE
from conversion_ext.normalizers.gaussian_mse import least_error
from conversion_ext.operators.sites import Site
from tests import zoo
from tests.live import live_inputs, make_live


def integrated_error(mean: float, std: float, thresholds: Tensor, n: int) -> Tensor:
    """E[(max(x, 0) - q(x))^2] for each threshold by the midpoint rule over what is above 0."""
    edges = torch.linspace(0, max(mean, 0) + 9 * std, 20001, dtype=torch.float64)
    x = (edges[1:] + edges[:-1]) / 2
    weight = torch.exp(-(((x - mean) / std) ** 2) / 2) * (edges[1] - edges[0]) / (std * (2 * torch.pi) ** 0.5)
    step = thresholds[:, None] / n
    return ((x - step * torch.floor(x / step + 0.5).clamp(0, n)) ** 2) @ weight


@pytest.mark.parametrize("n", [1, 2, 4, 15, 64])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-3.0, 1.0), (0.5, 0.3), (2.0, 1.0), (-1e-4, 3e-4), (5.0, 1.0)])
def test_no_other_threshold_has_less_error(mean, std, n):
    found = least_error(torch.tensor([mean]).double(), torch.tensor([std]).double(), n)
    everywhere = (max(mean, 0) + 9 * std) * torch.linspace(0.002, 1.2, 400, dtype=torch.float64)
    nearby = found * torch.linspace(0.97, 1.03, 121, dtype=torch.float64)
    error = integrated_error(mean, std, torch.cat([found, everywhere, nearby]), n)
    assert error[0] <= error.min() * (1 + 1e-4)
    at = nearby[error[-121:].argmin()]
    assert abs(at / found - 1) < 2e-3  # the minimum itself, not only its value


@pytest.mark.parametrize(("mean", "std", "n", "expected"), [(-3.0, 1.0, 64, 1.995), (0.5, 0.3, 16, 1.287)])
def test_where_a_hundred_steps_from_one_had_not_converged(mean, std, n, expected):
    found = least_error(torch.tensor([mean]).double(), torch.tensor([std]).double(), n)
    assert found.item() == pytest.approx(expected, abs=5e-4)


def test_a_channel_without_spread_is_told_exactly_and_one_far_below_zero_still_gets_a_threshold():
    found = least_error(torch.tensor([3.0, -2.0, -20.0]).double(), torch.tensor([0.0, 0.0, 1.0]).double(), 4)
    assert found[:2].tolist() == [3.0, 0.0]
    assert 0 < found[2] < 1  # what is above 0 there decays within 1/20


def normal_network() -> tuple[Any, Tensor]:
    """Convolutions and BatchNorms whose statistics are those of the data that is returned."""
    norms = [nn.BatchNorm2d(6, momentum=1.0), nn.BatchNorm2d(8, momentum=1.0)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.weight.data[0] *= -1
        nn.init.uniform_(norm.bias, -0.5, 1.0)
    ann = nn.Sequential(
        nn.Conv2d(3, 6, 3), norms[0], nn.ReLU(), nn.Conv2d(6, 8, 3), norms[1], nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
    )
    x = torch.randn(400, 3, 6, 6)
    with torch.no_grad():
        ann.train()(x)
    return ann.eval(), x


def thresholds(ann, x, normalizer, T=4, **options):
    recipe = cx.Recipe(normalizer)
    return cx.convert(ann, x, recipe=recipe, T=T, backend="reference", progress=False, **options).conversion.thresholds


@pytest.mark.parametrize("granularity", [cx.PerChannel(), cx.PerLayer()], ids=repr)
def test_batch_norm_prescribes_what_data_shows(granularity):
    ann, x = normal_network()
    from_data = thresholds(ann, x, GaussianMSE(granularity=granularity))
    from_weights = thresholds(ann, None, GaussianMSE(granularity=granularity, data_free=True), example_input=x[:1])
    assert list(from_weights) == list(from_data) == ["2", "5"]
    for key, expected in from_data.items():
        torch.testing.assert_close(from_weights[key], expected, rtol=5e-3, atol=0)


def test_data_free_is_the_formula_of_shift_and_gain():
    ann, x = normal_network()
    found = thresholds(ann, None, GaussianMSE(data_free=True), T=7, example_input=x[:1])
    for key, norm in (("2", ann[1]), ("5", ann[4])):
        expected = least_error(norm.bias.detach().double(), norm.weight.detach().double().abs(), 7)
        torch.testing.assert_close(found[key], expected.float())


def test_a_batch_norm_that_stays_counts_too():
    """Before a padded convolution BatchNorm cannot be folded; without affine parameters it prescribes N(0, 1)."""
    ann = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1)).eval()
    found = thresholds(ann, None, GaussianMSE(data_free=True), T=16, example_input=torch.zeros(1, 3, 6, 6))["1"]
    torch.testing.assert_close(found, torch.full((3,), 2.933), atol=1e-3, rtol=0)


def test_what_no_batch_norm_feeds_is_refused_by_name():
    ann = make_live(zoo.Residual(), *zoo.IMAGE)
    with pytest.raises(cx.UnsupportedError, match=r"relu#1 .*: no BatchNorm feeds.*pass calibration data") as caught:
        thresholds(ann, None, GaussianMSE(data_free=True), example_input=live_inputs(ann, *zoo.IMAGE)[:1])
    assert {problem.path for problem in caught.value.problems} == {"relu#1", "relu#3"}


def test_from_data_it_takes_the_currents_of_all_batches():
    """Against numpy's moments of the whole data, on an activation that is fed by the input itself."""
    x = torch.randn(300, 5) * torch.tensor([1.0, 10.0, 0.1, 2.0, 1.0]) + torch.tensor([0.0, 5.0, -0.1, -4.0, 1.0])
    found = thresholds(nn.Sequential(nn.ReLU(), nn.Linear(5, 2)), list(x.split(77)), GaussianMSE(), T=3)["0"]
    values = x.double().numpy()
    expected = least_error(torch.from_numpy(values.mean(0)), torch.from_numpy(values.std(0)), 3)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


def test_statistics_merge_as_if_all_had_been_seen_by_one():
    x = torch.randn(60, 4, 5) * 7 - 2
    whole, parts = GaussianMSE().statistics(Site("a", "0")), []
    whole.see(x, x.relu())
    for part in x.split(25):
        parts.append(GaussianMSE().statistics(Site("a", "0")))
        parts[-1].see(part, part.relu())
    merged = GaussianMSE().statistics(Site("a", "0"))
    for part in parts[::-1]:
        merged.merge(part)
    assert all(torch.equal(a, b) for a, b in zip(whole.mean_and_std(), merged.mean_and_std(), strict=True))
    with pytest.raises(cx.CalibrationError, match="NaN"):
        whole.see(torch.full((1, 4, 5), torch.nan), x[:1])
    with pytest.raises(cx.CalibrationError, match="had 4 channels, a later batch 3"):
        whole.see(torch.zeros(1, 3, 5), x[:1])


def test_it_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="data_free=1"):
        GaussianMSE(data_free=1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"PerChannel\(dim=2\).*data_free=True"):
        GaussianMSE(data_free=True, granularity=cx.PerChannel(2))
    with pytest.raises(ValueError, match="pass T="):
        cx.convert(nn.ReLU(), torch.rand(2, 3), recipe=cx.Recipe(GaussianMSE()), backend="reference")
