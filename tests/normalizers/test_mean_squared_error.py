"""The threshold of least quantization error, against a search over the raw activations."""

from __future__ import annotations

import pytest
import torch

import conversion_ext as cx
from conversion_ext.calibration.statistics import ActivationStats
from conversion_ext.normalizers import MeanSquaredError


def error(a: torch.Tensor, threshold: torch.Tensor, T: int, offset: float) -> torch.Tensor:
    level = threshold / T
    return (a - torch.floor(a / level + offset).clamp(0, T) * level).square().mean()


@pytest.mark.parametrize("offset", [0.5, 0.0])
@pytest.mark.parametrize("T", [1, 2, 5, 16])
def test_no_other_threshold_is_better(T, offset):
    a = torch.relu(torch.randn(4000, 3) * torch.tensor([1.0, 30.0, 1e-3]) + torch.tensor([0.0, 20.0, -1e-3])).double()
    stats = ActivationStats("site", cx.PerChannel())
    for part in a.float().split(700):
        stats.update(part)
    found = MeanSquaredError(offset=offset).threshold(stats, T)
    for channel in range(3):
        grid = a[:, channel].max() * torch.linspace(0.02, 1.5, 3000, dtype=torch.float64)
        best = min(error(a[:, channel], g, T, offset) for g in grid)
        assert error(a[:, channel], found[channel], T, offset) <= 1.02 * best  # candidates are 0.7 % apart


def test_more_steps_clip_less():
    stats = ActivationStats("site", cx.PerLayer())
    stats.update(torch.randn(20000).exp()[:, None])
    thresholds = [float(MeanSquaredError(granularity=cx.PerLayer()).threshold(stats, T)) for T in (1, 2, 4, 8, 16, 64)]
    assert thresholds == sorted(thresholds)
    assert thresholds[-1] > 2 * thresholds[0]


def test_it_needs_the_number_of_steps():
    with pytest.raises(ValueError, match="pass T="):
        cx.convert(torch.nn.ReLU(), torch.rand(2, 3), recipe=cx.Recipe(MeanSquaredError()), backend="reference")
