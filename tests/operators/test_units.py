"""Linear operations are linear: folded networks compute what unfolded ones do, and the error falls as 1/T."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import conversion_ext as cx
from conversion_ext.integer import integers
from conversion_ext.types import Family

PER_CHANNEL = cx.Recipe(cx.Maximum(granularity=cx.PerChannel()))


class Net(nn.Module):
    """A convolution and ReLU, then what a case does with the result, then an activation of its own."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.conv, self.one = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 1, 3, padding=1)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.matrix = nn.Parameter(torch.randn(4, 6))
        self.register_buffer("rows", torch.rand(5, 4))
        self.register_buffer("grid", torch.rand(1, 2, 6, 4))
        self.norm, self.pool, self.head = nn.SyncBatchNorm(4), nn.LPPool2d(1, 2), nn.Conv2d(6, 3, 1)
        self.linear = nn.Linear(4, 3)
        with torch.no_grad():
            self.norm.running_mean.normal_()  # type: ignore[union-attr]
            self.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        self.kernel = nn.Parameter(torch.randn(4, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        y = self.function(self, F.relu(self.conv(x)))
        del self.x
        return F.relu(y - 0.1)


def tokens(n: Any, y: Tensor) -> Tensor:
    return n.linear(torch.cat([n.token.expand(y.size(0), -1, -1), y.flatten(2).transpose(1, 2)], 1))


LINEAR: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a branch of one channel": lambda n, y: y + F.relu(n.one(n.x)),
    "minus the mean of the channels": lambda n, y: y - y.mean(1, keepdim=True),
    "mean over channels": lambda n, y: y.mean(1),
    "sum over everything": lambda n, y: y.sum((1, 2, 3))[:, None],
    "mean by axis": lambda n, y: y.mean(axis=3),  # pyright: ignore[reportCallIssue] (numpy's name)
    "zeros around channels": lambda n, y: F.pad(y[:, :, ::2], (0, 0, 0, 0, 1, 2)),
    "zeros beside channels": lambda n, y: torch.cat([y, torch.zeros(y.size(0), 2, 6, 4, dtype=y.dtype)], 1),
    "channels reflected": lambda n, y: F.pad(y.mean(3), (2, 1), mode="reflect"),
    "a constant around": lambda n, y: F.pad(y, (1, 1, 0, 0, 2, 1), value=0.5),
    "product with a matrix": lambda n, y: y.mean((2, 3)) @ n.matrix,
    "matrix from the left": lambda n, y: n.rows @ y.flatten(2),
    "einsum with a constant": lambda n, y: torch.einsum("nchw,cd->ndhw", y, n.matrix),
    "average over features": lambda n, y: F.avg_pool1d(y.mean((2, 3)), 2),
    "average over rows": lambda n, y: F.avg_pool2d(y.mean(3), 2),
    "zeros around features": lambda n, y: F.pad(y.mean((2, 3)), (1, 2)),
    "sums of windows": lambda n, y: n.pool(y),
    "sums of windows by function": lambda n, y: F.lp_pool1d(y.flatten(2), 1, 2),
    "synchronized BatchNorm": lambda n, y: n.norm(y) + n.norm(y * 0.5),
    "a class token": tokens,
    "coordinates": lambda n, y: n.head(torch.cat([y, n.grid.expand(y.size(0), -1, -1, -1)], 1)),
    "transposed matrices": lambda n, y: y.mT,
    "real parts": lambda n, y: y.real,
    "one chunk of a split": lambda n, y: y.split([1, 3], 1)[1],
    "a quotient": lambda n, y: torch.div(y, 0.7),
    "a scaled sum": lambda n, y: torch.add(y, n.one(n.x), alpha=-0.5),
}


def errors(snn: Any, ann: nn.Module, x: Tensor, at: tuple[int, ...]) -> list[float]:
    with torch.no_grad():
        expected = ann(x)
    outputs = cx.simulate(snn, x, at[-1], at=at).outputs
    return [float((output - expected).abs().max() / expected.abs().max()) for output in outputs]


@pytest.mark.parametrize("backend", ["spikingjelly", "snntorch"])
@pytest.mark.parametrize("name", LINEAR)
def test_the_error_falls_as_one_over_T(name: str, backend: str) -> None:
    ann = Net(LINEAR[name]).double().eval()
    x = torch.randn(4, 3, 6, 4, dtype=torch.float64)
    small, large = errors(cx.convert(ann, x, recipe=PER_CHANNEL, backend=backend, progress=False), ann, x, (64, 1024))
    assert large <= max(small / 4, 1e-12)
    assert large < 0.01


@pytest.mark.parametrize("name", LINEAR)
def test_folded_is_unfolded(name: str) -> None:
    ann = Net(LINEAR[name]).double().eval()
    x = torch.randn(4, 3, 6, 4, dtype=torch.float64)
    options: dict[str, Any] = {"recipe": PER_CHANNEL, "backend": "reference", "progress": False}
    folded, unfolded = (cx.convert(ann, x, fold=fold, **options) for fold in (True, False))
    first, second = (cx.simulate(snn, x, 16).outputs for snn in (folded, unfolded))
    assert float((first - second).abs().max()) <= 1.0 / 16 * float(second.abs().max())  # but for spikes at ties
    assert float((first - second).abs().median()) < 1e-9


def test_zeros_beside_spikes_leave_spikes_and_integers() -> None:
    """He et al.'s CIFAR shortcut: subsample, pad channels with zeros."""

    class OptionA(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
            self.c, self.f = nn.Conv2d(16, 4, 1), nn.Linear(256, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = F.relu(self.a(x))
            shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
            return self.f(F.relu(self.b(x) + shortcut).flatten(1)), self.c(shortcut)

    torch.manual_seed(0)
    ann, x = OptionA().eval(), torch.rand(8, 3, 8, 8)
    assert cx.check(ann, x, graded=False) == []
    snn = cx.convert(ann, x, backend="reference", progress=False)
    assert next(row.sees for row in snn.conversion.table() if row.key == "c") is Family.BINARY
    assert integers(snn, x) is not None


ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {
    "//": lambda y: y // 0.25,
    "rounding_mode": lambda y: torch.div(y, 0.25, rounding_mode="floor"),
    "method": lambda y: y.div(0.25, rounding_mode="trunc"),
    "floor": lambda y: y.floor(),
    "remainder": lambda y: y % 0.3,
}


@pytest.mark.parametrize("name", ROUNDING)
def test_rounding_is_refused_in_one_sentence(name: str) -> None:
    ann = Net(lambda n, y: ROUNDING[name](y)).eval()
    (problem,) = cx.check(ann, torch.randn(4, 3, 6, 4))
    assert "rounds values" in problem.reason
    assert "QCFS" in problem.remedy


CONTRACTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "sum over channels": lambda n, y: torch.einsum("nchw,cd->ndhw", y, n.matrix),
    "the weight first": lambda n, y: torch.einsum("dc,nchw->ndhw", n.rows, y),
    "behind any dimensions": lambda n, y: torch.einsum("n...i,ij->n...j", y, n.matrix),
    "two dimensions at once": lambda n, y: torch.tensordot(y, n.kernel, dims=([1, 3], [0, 1])),
    "the last dimension": lambda n, y: torch.tensordot(y, n.matrix, 1),
    "to one number": lambda n, y: torch.einsum("nchw,chw->n", y, n.kernel[:, :, :1].expand(4, 4, 6).mT)[:, None],
    "a matrix on the left": lambda n, y: n.rows @ y.flatten(2),
}


@pytest.mark.parametrize("name", CONTRACTIONS)
@pytest.mark.parametrize("backend", ["spikingjelly", "snntorch"])
def test_sums_of_products_with_constants_are_weight_layers(name: str, backend: str) -> None:
    """They are right, see spikes, and count as many operations as torch does."""
    ann = Net(CONTRACTIONS[name]).double().eval()
    x = torch.randn(4, 3, 6, 4, dtype=torch.float64)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        expected = ann(x)
    snn = cx.convert(ann, x, recipe=cx.Recipe(cx.Maximum(granularity=cx.PerLayer())), backend=backend, progress=False)
    early, late = ((out - expected).norm() / expected.norm() for out in cx.simulate(snn, x, 512, at=(32, 512)).outputs)
    assert late < min(0.02, 0.2 * early)
    layers = [row for row in snn.conversion.table() if row.kind == "synapse"]
    assert [row.sees for row in layers] == [Family.ANALOG, Family.BINARY]
    second = next(layer for layer in cx.synops(snn, x, 4, ann=ann).layers if layer.key == layers[1].key)
    products = counted.get_total_flops() / 2 / len(x) - 3 * 9 * 4 * 24  # those of the convolution, padding included
    assert second.macs == products
    assert second.synops > 0
