"""The share of a current that neurons cannot say: closed forms, and what a larger input does to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.analysis.saturation import clipped_share, limits
from conversion_ext.backends import available

T = 8


def identity(backend: str = "reference", **recipe: Any) -> Any:
    """Return two neurons with thresholds 1 that read their inputs, and a readout."""
    ann = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        for layer in (ann[0], ann[2]):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
    made = cx.Recipe(cx.Maximum(), **recipe)
    return cx.convert(ann, torch.ones(4, 2), recipe=made, backend=backend, progress=False)


@pytest.mark.parametrize("backend", available())
def test_it_is_what_a_constant_current_leaves(backend):
    """z > 1: T spikes, and v_init + T z - T left; z <= 1: nothing beyond the threshold, whatever its sign."""
    x = torch.tensor([[2.5, 0.5], [0.25, 1.0], [3.0, 3.0], [-4.0, 0.0], [-4.0, 2.0]])
    shares = clipped_share(identity(backend), [x[:2], x[2:]], T)
    debt = (0.5 + T * x - T - 1).clamp_min(0).double()
    said = (T * x + 0.5).floor().clamp(0, T).double()
    expected = debt.sum(1) / (debt + said).sum(1).clamp_min(1e-9)
    assert list(shares) == ["1"]
    torch.testing.assert_close(shares["1"], expected)
    assert expected[0] > 0 == expected[1]


def test_signed_sites_can_say_too_little_on_either_side():
    ann = nn.Sequential(nn.Linear(1, 1), nn.LeakyReLU(0.5), nn.Linear(1, 1))
    with torch.no_grad():
        ann[0].weight.fill_(1.0)
        ann[0].bias.zero_()
    snn = cx.convert(ann, torch.ones(4, 1), recipe=cx.Recipe(), backend="reference", progress=False)
    (share,) = clipped_share(snn, torch.tensor([[0.5], [9.0], [-18.0], [-1.0]]), T).values()
    assert share[0] == share[3] == 0
    assert share[1] == pytest.approx(float(share[2]), abs=0.05)
    assert share[1] > 0.7


def test_inputs_beyond_the_calibration_data_are_outside():
    snn = identity()
    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 1.2
    bounds = limits(snn, x, T, quantile=0.9)
    outside = bounds.outside(snn, list(x.split(64)))
    assert outside.sum() == 20
    assert torch.equal(outside, clipped_share(snn, x, T)["1"] > bounds.shares["1"])
    assert bounds.outside(snn, 3 * x.clamp_min(0.7)).all()
    assert not limits(snn, x, T, quantile=1.0).outside(snn, x).any()


def test_what_keeps_no_account_is_refused():
    x = torch.ones(4, 2)
    with pytest.raises(ValueError, match="only IF neurons with soft reset"):
        clipped_share(identity(neuron=cx.IF(reset=cx.Reset.ZERO)), x, T)
    with pytest.raises(ValueError, match="only IF neurons with soft reset"):
        clipped_share(identity(tuners=(cx.tuners.VoltageClamp(),)), x, T)
    with pytest.raises(TypeError, match="snn is a Linear"):
        clipped_share(nn.Linear(2, 2), x, T)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="quantile=2"):
        limits(identity(), x, T, quantile=2)
    with pytest.raises(cx.CalibrationError, match="no batch"):
        clipped_share(identity(), [], T)
