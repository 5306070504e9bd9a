"""Zeros that a module or a call of its own pads are padded by the convolutions that read them, where they can."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.capture.passes import run_passes
from conversion_ext.capture.tracing import capture
from tests.live import make_live
from tests.traps import Net

C1, C2, C3 = nn.Conv1d, nn.Conv2d, nn.Conv3d


def called(model):
    return [str(node.target) for node in model.graph.nodes if node.op != "output" and node.op != "placeholder"]


def rewritten(ann, *shape):
    model = capture(ann.double())
    x = torch.randn(3, *shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    run_passes(model, x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), ann(x), rtol=1e-12, atol=1e-12)
    return model


@pytest.mark.parametrize(
    ("pad", "conv", "shape", "padding"),
    [
        (nn.ZeroPad1d(2), C1(2, 3, 3, padding=1), (2, 7), (3,)),
        (nn.ZeroPad2d((2, 2, 1, 1)), C2(2, 3, 3, stride=2, dilation=2), (2, 7, 8), (1, 2)),
        (nn.ZeroPad3d((3, 3, 2, 2, 1, 1)), C3(2, 3, 3, padding="valid"), (2, 4, 5, 6), (1, 2, 3)),
        (nn.ConstantPad2d(1, 0.0), C2(2, 4, 3, groups=2, padding=(0, 1)), (2, 5, 5), (1, 2)),
        (Net(lambda n, x: F.pad(x, (1, 1))), C2(2, 3, 3, bias=False), (2, 5, 5), (0, 1)),
        (Net(lambda n, x: F.pad(x, [0, 0, 2, 2], "constant", 0)), C2(2, 3, 3), (2, 5, 5), (2, 0)),
        (Net(lambda n, x: F.pad(input=x, pad=(1, 1, 1, 1, 0, 0), value=0.0)), C2(2, 3, 3), (2, 5, 5), (1, 1)),
        (nn.Sequential(nn.ZeroPad2d(1), nn.ZeroPad2d(2)), C2(2, 3, 3), (2, 5, 5), (3, 3)),
    ],
)
def test_equal_sides_of_zeros_are_padding_of_the_convolution(pad, conv, shape, padding):
    ann = nn.Sequential(pad, conv, nn.ReLU())
    before = copy.deepcopy(conv.padding)
    model = rewritten(ann, *shape)
    assert called(model) == ["1", "2"]
    assert model.get_submodule("1").padding == padding
    assert conv.padding == before  # of the user


@pytest.mark.parametrize(
    ("pad", "conv"),
    [
        (nn.ZeroPad2d((0, 1, 0, 1)), C2(2, 3, 3, stride=2)),
        (nn.ZeroPad2d(-1), C2(2, 3, 3)),
        (nn.ConstantPad2d(1, 0.5), C2(2, 3, 3)),
        (nn.ReflectionPad2d(1), C2(2, 3, 3)),
        (Net(lambda n, x: F.pad(x, (1, 1, 1, 1), mode="replicate")), C2(2, 3, 3)),
        (Net(lambda n, x: F.pad(x, (1, 1), value=1.0)), C2(2, 3, 3)),
        (Net(lambda n, x: F.pad(x, (0, 0, 0, 0, 1, 1))), C2(4, 3, 3)),  # channels
        (nn.ZeroPad2d(1), C2(2, 3, 3, padding="same")),
        (nn.ZeroPad2d(1), C2(2, 3, 3, padding=1, padding_mode="circular")),
        (nn.ZeroPad2d(1), nn.ConvTranspose2d(2, 3, 3)),
        (nn.ZeroPad2d(1), nn.AvgPool2d(3)),
    ],
)
def test_what_a_convolution_cannot_pad_stays(pad, conv):
    model = rewritten(nn.Sequential(pad, conv, nn.ReLU()), 2, 6, 6)
    assert len(called(model)) == 3


def both(net, x):
    y = net.pad(x)
    return net.relu(net.one(y)) + net.relu(net.two(y))


def test_two_convolutions_read_one_padding():
    ann = Net(
        both,
        pad=nn.ZeroPad2d(1), one=C2(2, 3, 3), two=C2(2, 3, 3, padding=1, stride=1, dilation=2), relu=nn.ReLU(),
    )  # fmt: skip
    model = rewritten(ann, 2, 6, 6)
    assert "pad" not in called(model)
    assert [model.get_submodule(name).padding for name in ("one", "two")] == [(1, 1), (2, 2)]


def beside(net, x):
    y = net.pad(x)
    return net.conv(y).sum((2, 3)) + y.sum((1, 2, 3))[:, None]


def test_a_padded_value_with_another_reader_stays():
    ann = Net(
        beside,
        pad=nn.ZeroPad2d(1), conv=C2(2, 3, 3),
    )  # fmt: skip
    model = rewritten(ann, 2, 6, 6)
    assert "pad" in called(model)
    assert model.get_submodule("conv").padding == (0, 0)


def test_a_convolution_called_with_and_without_padding_becomes_two():
    ann = Net(
        lambda n, x: n.relu(n.conv(n.pad(n.relu(n.conv(x))))), conv=C2(2, 2, 3), pad=nn.ZeroPad2d(2), relu=nn.ReLU()
    )
    model = rewritten(ann, 2, 6, 6)
    paddings = [m.padding for m in model.modules() if isinstance(m, C2)]
    assert sorted(paddings) == [(0, 0), (2, 2)]


def test_a_skipped_padding_stays():
    model = capture(nn.Sequential(nn.ZeroPad2d(1), C2(2, 3, 3), nn.ReLU()), skip=("0",))
    run_passes(model, torch.zeros(2, 2, 6, 6))
    assert called(model) == ["0", "1", "2"]


@pytest.mark.parametrize("backend", available())
def test_a_padded_network_spikes_as_one_whose_convolutions_pad(backend):
    def network(pad, padding):
        return nn.Sequential(pad, C2(2, 4, 3, padding=padding), nn.ReLU(), pad, C2(4, 4, 3, padding=padding), nn.ReLU(),
                             nn.Flatten(), nn.Linear(144, 3))  # fmt: skip

    torch.manual_seed(0)
    ann = make_live(network(nn.ZeroPad2d(1), 0), 2, 6, 6)
    other = network(nn.Identity(), 1).eval()
    other.load_state_dict(ann.state_dict())
    x = torch.rand(8, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    found = [cx.convert(net, x, T=4, backend=backend, progress=False) for net in (ann, other)]
    assert list(found[0].conversion.thresholds) == list(found[1].conversion.thresholds)
    assert torch.equal(cx.simulate(found[0], x, 4).outputs, cx.simulate(found[1], x, 4).outputs)
