"""When to begin reading, against the published sum written out for a chain."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.types import Steps
from tests import zoo
from tests.live import live_inputs, make_live


def converted(ann: Any, x: Any, **fields: Any) -> Any:
    recipe = cx.Recipe(cx.Maximum(granularity=cx.PerLayer()), **fields)
    return cx.convert(ann, x, recipe=recipe, backend="reference", progress=False)


@pytest.mark.parametrize("v_init", [0.0, 0.5])
def test_layers_of_a_chain_add_what_their_fastest_neuron_waits(v_init):
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    x = torch.randn(40, 8, dtype=torch.float64)
    snn = converted(ann, x, neuron=cx.IF(v_init=v_init))
    a = x
    expected = 0.0
    for layers, threshold in zip((ann[:2], ann[2:4]), snn.conversion.thresholds.values(), strict=True):
        # what a layer gets from the one before: activations as 64 steps tell them
        a = layers(a)
        expected += ((1 - v_init) * threshold / a.mean(0).max()).item()
        a = threshold / 64 * torch.clamp(torch.floor(64 * a / threshold + v_init), 0, 64)
    assert expected > 1
    assert cx.analysis.estimate_start(snn, x, 64) == math.ceil(expected)
    assert cx.analysis.estimate_start(snn, x, 5) == 1  # four steps are left to read
    with pytest.raises(ValueError, match=r"T=4: .*read them all"):
        cx.analysis.estimate_start(snn, x, 4)


def test_of_branches_the_slowest_counts():
    """Between the slowest site and the sum over all sites, three of which run side by side."""
    ann = make_live(zoo.Inception(), *zoo.IMAGE).double()
    x = live_inputs(ann, *zoo.IMAGE)
    snn = converted(ann, x, neuron=cx.IF(v_init=0.0))
    waits: dict[str, float] = {}
    for key, site in snn.sites().items():
        activation: dict[str, Any] = {}
        site.register_forward_pre_hook(lambda s, args, seen=activation: seen.update(z=s.current(args[0])))
        with torch.no_grad():
            snn.run((x,), Steps(1, constant=True, block=64))
        cx.reset(snn)
        waits[key] = 1 / activation["z"].relu().mean(0).max().item()
    first, *branches = waits.values()
    assert len(branches) == 3
    assert cx.analysis.estimate_start(snn, x, 64) == math.ceil(first + max(branches)) < math.ceil(sum(waits.values()))


def test_discarding_the_estimate_helps_a_deep_network():
    torch.manual_seed(1)
    layers: list[Any] = [layer for _ in range(8) for layer in (nn.Linear(64, 64), nn.ReLU())]
    ann = nn.Sequential(*layers, nn.Linear(64, 10)).double()
    for layer in layers[::2] + [ann[-1]]:
        nn.init.kaiming_normal_(layer.weight)
    x = torch.rand(100, 64, dtype=torch.float64)
    snn, T = converted(ann, x, neuron=cx.IF(v_init=0.0)), 32
    start = cx.analysis.estimate_start(snn, x, T)
    error = {s: (cx.simulate(snn, x, T, readout=cx.readouts.MeanOutput(s)).output - ann(x)).norm() for s in (0, start)}
    assert 4 < start < T - 4
    assert error[start] < 0.8 * error[0]
