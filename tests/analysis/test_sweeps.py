"""The sweep: every setting is the conversion that it says, and the trade goes the way Diehl et al. describe."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.analysis.sweeps import sweep
from conversion_ext.encoders import Poisson

X = torch.rand(60, 16, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(16, 24, bias=False), nn.ReLU(), nn.Linear(24, 24, bias=False), nn.ReLU())
    for layer in ann[::2]:
        nn.init.kaiming_normal_(layer.get_parameter("weight"))
    return ann.append(nn.Linear(24, 5, bias=False))


def swept(ann, loader, T, recipe="default", **options):
    snn = cx.convert(ann, X, recipe=recipe, backend="reference", progress=False)
    return sweep(snn, loader, T, ann=ann, calibration=X, **options)


@torch.no_grad()
def test_each_point_is_a_conversion_of_its_own():
    ann = network()
    loader = [(X, ann(X).argmax(1))]
    points = swept(ann, loader, (4, 32), thresholds=(1.0, 2.0), gains=(0.5, 1.0))
    assert [(p.threshold, p.gain, p.T) for p in points] == [
        (f, g, t) for f in (1.0, 2.0) for g in (0.5, 1.0) for t in (4, 32)
    ]
    recipe = cx.Recipe(encoder=Poisson(0.5))
    plain = cx.convert(ann, X, recipe=recipe, backend="reference", progress=False)
    assert points[1].accuracy == float(cx.evaluate(plain, loader, 32, progress=False).accuracy[-1])
    count = cx.synops(plain, X, 32)
    assert (points[1].synops, points[1].spikes) == (count.synops, sum(count.spikes.values()))


@torch.no_grad()
def test_higher_thresholds_cost_less_and_more_time_says_more():
    ann = network()
    loader = [(X, ann(X).argmax(1))]
    points = swept(ann, loader, (2, 64), thresholds=(0.25, 1.0, 4.0))
    late = [p for p in points if p.T == 64]
    assert late[0].spikes > late[1].spikes > late[2].spikes > 0
    assert late[0].synops > late[1].synops > late[2].synops
    assert late[1].accuracy > max(late[0].accuracy, points[4].accuracy)  # clipped, or too coarse for two steps
    assert all(p.gain is None for p in points)


@torch.no_grad()
def test_one_setting_is_the_curve_of_accuracy_against_operations():
    """Rueckauer et al. 2017: every point costs more than the one before, in the end as time does, and says more."""
    ann = network()
    points = swept(ann, [(X, ann(X).argmax(1))], (4, 16, 64, 256), recipe="rueckauer2017")
    cost, right = [p.synops for p in points], [p.accuracy for p in points]
    ratios = [now / before for before, now in zip(cost, cost[1:], strict=False)]
    assert all(ratio > 3.9 for ratio in ratios)  # from a potential of 0 the first spikes are late
    assert ratios[-1] < 4.4
    assert right[0] < right[1] <= right[2] <= right[3]
    assert right[3] > 0.9


@pytest.mark.parametrize("bad", [{"T": ()}, {"thresholds": (0.0,)}, {"gains": (-1.0,)}, {"thresholds": ()}])
def test_bad_values_are_refused_before_any_work(bad):
    with pytest.raises(ValueError, match="="):
        swept(network(), [(X, torch.zeros(60).long())], **{"T": (2,), **bad})


def test_clipped_relus_keep_their_caps():
    ann = nn.Sequential(nn.Linear(16, 8), nn.ReLU6(), nn.Linear(8, 3))
    points = swept(ann, [(X, torch.zeros(60).long())], (4,), thresholds=(1e3, 1e6))
    assert points[0].spikes == points[1].spikes  # at most 6, whatever the factor
