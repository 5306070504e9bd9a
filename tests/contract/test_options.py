"""What ``convert`` was told of a network, ``skip``, ``leaf``, ``relay`` and ``forward``, every later verb knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.analysis import decompose, limits

T = 4


class Scale(nn.Module):
    """A module that cannot be traced: what it does depends on its input."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if float(x.sum()) > -1e30 else x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.scale, self.fc2, self.fc3 = nn.Linear(6, 8), Scale(), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x).relu()
        return self.fc3(self.scale(self.fc2(y).relu() + y))


class Plain(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Identity()


def first(model: Any, batch: Any) -> Any:
    return model(batch[0])


CASES: dict[str, tuple[type[Net], dict[str, Any]]] = {
    "skip": (Net, {"skip": ("scale",)}),
    "relay": (Plain, {"relay": True}),
    "forward": (Plain, {"forward": first}),
    "leaf": (Plain, {"leaf": (nn.Identity,)}),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Any:
    kind, options = CASES[request.param]
    torch.manual_seed(0)
    ann = kind().eval().requires_grad_(False)
    x = torch.rand(32, 6)
    data = [(x, ann(x).argmax(1))]
    recipe = cx.Recipe(cx.Percentile(99.9))
    snn = cx.convert(ann, data, recipe=recipe, T=T, backend="reference", progress=False, **options)
    return ann, snn, data


def test_accuracy_and_its_forecast(case):
    ann, snn, data = case
    found = cx.evaluate(snn, data, 64, ann=ann, progress=False)
    assert found.accuracy[-1] > 0.9
    assert found.ann_accuracy == 1
    assert cx.forecast(snn, data, T=(64,), progress=False).accuracy[-1] > 0.9


def test_errors_by_site_and_limits(case):
    ann, snn, data = case
    found = decompose(snn, data, T, ann=ann)
    assert {site.key for site in found.sites} == set(snn.sites())
    assert all(0 < site.total_error < 2 for site in found.sites)
    assert set(limits(snn, data, T).shares) == set(snn.sites())


def test_operations_beside_those_of_the_ann(case):
    ann, snn, data = case
    assert cx.synops(snn, data, T, ann=ann).macs == pytest.approx(6 * 8 + 8 * 8 + 8 * 3)


def test_diagnosis_converts_anew_in_the_same_way(case):
    ann, snn, data = case
    found = cx.diagnose(snn, ann, data, 1)
    assert {fact.key for fact in found.sites} == set(snn.sites())
    assert not [note for note in found.notes if "No errors by site" in note]


def test_a_file_gives_the_same_network(case, tmp_path):
    _, snn, data = case
    if any(isinstance(module, Scale) for module in snn.modules()):
        with pytest.raises(cx.ConversionError, match="Scale"):
            cx.save(snn, tmp_path / "net.safetensors")
        return
    cx.save(snn, tmp_path / "net.safetensors")
    again = cx.load(tmp_path / "net.safetensors")
    x = data[0][0]
    assert torch.equal(cx.simulate(again, x, T).output, cx.simulate(snn, x, T).output)
