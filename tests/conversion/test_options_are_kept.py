"""What convert was told of a network and its data, every later verb knows: skip=, leaf=, relay=, forward=."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.training import RateDistillation

pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data")
T = 4
GENERATOR = torch.Generator().manual_seed(0)
X, Z = torch.rand(40, 1, 6, 6, generator=GENERATOR), torch.rand(40, 16, generator=GENERATOR)


class Odd(nn.Module):
    """What no operator is registered for."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.erf(x)


class Two(nn.Module):
    """A network of two inputs, an average pool and an odd layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.pool, self.odd = nn.Conv2d(1, 4, 3), nn.AvgPool2d(2), Odd()
        self.two, self.act, self.head = nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        y = self.pool(self.one(x).relu()).flatten(1)
        return self.head(self.act(self.two(torch.cat([y, self.odd(z)], 1))))


def forward(model: Any, batch: Any) -> Any:
    return model(batch[0], batch[1])


OPTIONS: dict[str, dict[str, Any]] = {
    "skip": {"skip": ("odd",)},
    "leaf": {"skip": ("odd",), "leaf": (nn.AvgPool2d,)},
    "relay": {"skip": ("odd",), "relay": True},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_verb_reads_network_and_data_as_the_conversion_did(kind):
    ann = Two().eval()
    with torch.no_grad():
        y = ann(X, Z).argmax(1)
    data = [(X[:20], Z[:20], y[:20]), (X[20:], Z[20:], y[20:])]
    snn = cx.convert(ann, data, T=T, backend="reference", forward=forward, progress=False, **OPTIONS[kind])
    expected = (cx.simulate(snn, (X, Z), T).outputs.argmax(2) == y).double().mean(1)
    for network in (snn, copy.deepcopy(snn), pickle.loads(pickle.dumps(snn))):
        found = cx.evaluate(network, data, T, ann=ann, progress=False)
        assert torch.equal(found.score, expected)
        assert found.ann_score == 1
    assert cx.forecast(snn, data, (1, T), ann=ann, progress=False).ann_score == 1
    keys = [site.key for site in cx.analysis.decompose(snn, data, T, ann=ann).sites]
    assert keys == list(snn.sites())
    count = cx.synops(snn, data, T, ann=ann)
    assert count.macs == pytest.approx(16 * 4 * 9 + 32 * 16 + 16 * 3)
    assert cx.analysis.estimate_start(snn, data, 32) >= 0
    result = cx.finetune(snn, data, T=T, teacher=ann, distillation=RateDistillation(), validation=data, progress=False)
    assert result.history[0].score == float(expected[-1])
    assert result.snn.record.options == snn.record.options
    assert snn.record.options.arguments()["forward"] is forward


def test_a_function_that_cannot_be_pickled_is_left_behind():
    ann = Two().eval()
    call = lambda model, batch: model(batch[0], batch[1])  # noqa: E731
    data = [(X, Z)]
    snn = cx.convert(ann, data, backend="reference", forward=call, skip=("odd",), progress=False)
    assert copy.deepcopy(snn).record.options.forward is call
    again = pickle.loads(pickle.dumps(snn))
    assert again.record.options.forward is None
    assert again.record.options.skip == ("odd",)
    assert "forward" not in snn.state_dict()["_extra_state"]["options"]
