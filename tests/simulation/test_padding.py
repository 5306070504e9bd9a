"""Unequal sides of zeros before depthwise convolutions: their kernels do it, and nothing but time tells."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import conversion_ext as cx
from conversion_ext.simulation.engine import Engine
from conversion_ext.simulation.padding import Padded
from tests.traps import Net

CASES = {
    "right": (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 8, 3, stride=2, groups=4), (4, 8, 8)),
    "left": (nn.ZeroPad2d((2, 1, 3, 0)), nn.Conv2d(4, 4, (3, 2), groups=4, padding=(1, 0)), (4, 7, 6)),
    "dilated": (nn.ConstantPad1d((0, 2), 0), nn.Conv1d(4, 4, 3, dilation=2, groups=4), (4, 9)),
    "volume": (nn.ZeroPad3d((1, 2, 0, 1, 0, 0)), nn.Conv3d(4, 4, 2, groups=4, bias=False), (4, 3, 4, 5)),
    "function": (Net(lambda n, x: F.pad(x, (1, 0))), nn.Conv2d(4, 4, 3, groups=4), (4, 6, 6)),
}


def converted(pad, conv, shape):
    kind = type(conv)
    torch.manual_seed(1)
    conv.reset_parameters()
    first, act = kind(shape[0], shape[0], 1), nn.ReLU()
    features = nn.Sequential(first, act, pad, conv, nn.ReLU(), nn.Flatten())
    head = nn.Linear(features(torch.zeros(1, *shape)).shape[1], 3)
    ann = nn.Sequential(*features, head).eval()
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    return cx.convert(ann, x, T=4, progress=False), x


def fused(snn):
    return [module for module in Engine(snn).main.modules() if isinstance(module, Padded)]


@pytest.mark.parametrize("name", CASES)
def test_a_depthwise_convolution_pads_for_itself(name):
    snn, x = converted(*CASES[name])
    assert len(fused(snn)) == 1
    cx.reset(snn)
    with torch.no_grad():
        loop = sum(snn(x) for _ in range(4)) / 4
    found = cx.simulate(snn, x, 4, readout=cx.readouts.MeanOutput())
    assert all(0 < spikes.mean() for spikes in found.spikes.values())
    torch.testing.assert_close(found.output, loop)
    (padded,) = fused(snn)
    given = torch.randn(2, *CASES[name][2], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(padded(given), padded.conv(CASES[name][0](given)), rtol=1e-5, atol=1e-5)
    padded.conv.weight.data.mul_(2)  # it is the network's own
    assert padded.conv.weight is snn.body.get_submodule("3").weight


@pytest.mark.parametrize(
    ("pad", "conv"),
    [
        (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 3)),  # more multiplications than a copy is worth
        (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 3, groups=4, dilation=2)),
        (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 3, groups=4, padding="same")),
        (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect")),
        (nn.ConstantPad2d((0, 1, 0, 1), 1.0), nn.Conv2d(4, 4, 3, groups=4)),
    ],
)
def test_other_padding_stays(pad, conv):
    snn, _ = converted(pad, conv, (4, 8, 8))
    assert fused(snn) == []


def test_hooks_on_padding_and_convolution_run():
    snn, x = converted(*CASES["right"])
    expected, seen = cx.simulate(snn, x, 4).outputs, []
    for name in ("2", "3"):
        snn.body.get_submodule(name).register_forward_hook(lambda module, _, y: seen.append((type(module), y.shape[2])))
    torch.testing.assert_close(cx.simulate(snn, x, 4).outputs, expected)
    assert set(seen) == {(nn.ZeroPad2d, 9), (nn.Conv2d, 4)}


def test_a_hook_keeps_what_the_convolution_gave():
    snn, x = converted(*CASES["right"])
    kept = []
    snn.body.get_submodule("3").register_forward_hook(lambda _, args, y: kept.append((y, y.clone())))
    cx.simulate(snn, x, 4)
    assert kept
    assert all(torch.equal(y, given) for y, given in kept)
