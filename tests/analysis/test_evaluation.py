"""cx.evaluate for tasks, options, sequences and networks of several inputs, against simulate and the ANN by hand."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.readouts import Confidence, MeanOutput
from tests.live import perceptron

pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data")
T = 8
X = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))


def network(outputs: int, *end: nn.Module) -> nn.Sequential:
    return nn.Sequential(*perceptron(6, 16, outputs, seed=1), *end).eval()


def converted(ann: nn.Module, x: Any = X, **options: Any) -> Any:
    return cx.convert(ann, x, backend="reference", progress=False, **options)


def evaluate(snn: Any, data: Any, T: int | None = T, **options: Any) -> Any:
    return cx.evaluate(snn, data, T, progress=False, **options)


class Dict(nn.Module):
    """A segmentation network as torchvision's: a dict of maps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.out, self.aux = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 3, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.one(x).relu()
        return {"out": self.out(y), "aux": self.aux(y)}


@torch.no_grad()
def test_one_logit_is_right_on_its_side_of_zero():
    ann = network(1)
    y = (ann(X)[:, 0] + 0.1 * torch.randn(40) > 0).long()
    snn = converted(ann)
    found = evaluate(snn, (X, y), ann=ann)
    outputs = cx.simulate(snn, X, T).outputs[:, :, 0]
    assert found.accuracy.tolist() == pytest.approx(((outputs > 0) == (y > 0)).double().mean(1).tolist())
    assert found.ann_accuracy == pytest.approx(float(((ann(X)[:, 0] > 0) == (y > 0)).double().mean()))
    assert "metric: binary_accuracy (one output per sample" in str(found)
    for target in (y.float()[:, None], y.bool(), nn.functional.one_hot(y)[:, 1:]):
        assert torch.equal(evaluate(snn, [(X, target)]).score, found.score)
    with pytest.raises(ValueError, match="pass metric="):
        evaluate(snn, (X, nn.functional.one_hot(y)))


@torch.no_grad()
def test_a_sigmoid_decides_at_one_half():
    plain, ann = network(1), network(1, nn.Sigmoid())
    y = (plain(X)[:, 0] > 0.05).long()
    found = evaluate(converted(ann), (X, y), 64, ann=ann, at=64)
    assert found.ann_accuracy == float(((plain(X)[:, 0] > 0) == (y > 0)).double().mean())
    assert float(found.accuracy) > 0.8


@torch.no_grad()
def test_regression_is_measured_in_the_units_of_its_targets():
    ann = network(2)
    y = ann(X) + 0.01 * torch.randn(40, 2)
    snn = converted(ann)
    found = evaluate(snn, (X, y), 256, ann=ann, at=(1, 4, 256))
    errors = (cx.simulate(snn, X, 256, at=(1, 4, 256)).outputs - y).square().mean((1, 2)).sqrt()
    torch.testing.assert_close(found.score, errors.double())
    assert found.score[2] < found.score[0]
    assert found.latency(0.1) == 4 or found.latency(0.1) in (1, 256)
    assert found.agreement is not None
    assert found.agreement[2] < 0.01
    with pytest.raises(ValueError, match=r"measures rmse, which is no accuracy; read \.score"):
        _ = found.accuracy
    guess = cx.forecast(snn, (X, y), (1, 64), ann=ann, progress=False)
    twins = [float((cx.twin(snn, t)(X) - y).square().mean().sqrt()) for t in (1, 64)]
    assert guess.score.tolist() == pytest.approx(twins)
    assert guess.ann_score == pytest.approx(float((ann(X) - y).square().mean().sqrt()))
    assert float(evaluate(snn, (X, y), 256, at=(256,), metric="r2").score) > 0.9


@torch.no_grad()
def test_dicts_of_maps_are_segmentation():
    ann, x = Dict().eval(), torch.rand(8, 2, 6, 6)
    y = ann(x)["out"].argmax(1)
    found = evaluate(converted(ann, x), [(x, y)], 128, ann=ann, at=(128,))
    assert found.metric.name == "miou"
    assert found.ann_score == 1
    assert float(found.score) > 0.8
    assert "of output 'out'" in found.reason


@torch.no_grad()
def test_data_without_targets_is_judged_by_the_ann():
    ann = network(4)
    snn = converted(ann)
    found = evaluate(snn, [X[:30], X[30:]], ann=ann)
    assert torch.equal(found.score, evaluate(snn, (X, ann(X).argmax(1)), ann=ann).agreement)
    with pytest.raises(cx.CalibrationError, match="without a target"):
        evaluate(snn, X)


@torch.no_grad()
def test_results_print_and_are_plain():
    ann = network(4)
    snn, y = converted(ann), ann(X).argmax(1)
    results = [
        evaluate(snn, (X, y), 64, ann=ann), cx.forecast(snn, (X, y), progress=False), cx.simulate(snn, X, T),
        cx.synops(snn, X, T), cx.analysis.decompose(snn, X, T, ann=ann), cx.analysis.limits(snn, X, T),
        cx.analysis.sweep(snn, (X, y), T, ann=ann, calibration=X),
    ]  # fmt: skip
    for result in results:
        assert 1 < len(str(result).splitlines()) < 25
        assert result._repr_html_().startswith("<table>")
        json.dumps(result.to_dict())


@torch.no_grad()
def test_it_takes_what_simulate_takes():
    ann = network(4)
    snn, y = converted(ann), ann(X).argmax(1)
    for options in (
        {"readout": MeanOutput(start=3)}, {"block": 4}, {"time_chunk": 3}, {"dtype": "bfloat16"}, {"weights": "int8"},
    ):  # fmt: skip
        simulated = cx.simulate(snn, X, T, **options)
        outputs: Any = simulated.outputs
        expected = (outputs.argmax(2) == y).double().mean(1)
        first = 3 if "readout" in options else 0  # before it the readout has read nothing
        found = evaluate(snn, (X, y), **options)
        assert torch.equal(found.score, expected[first:])
        assert found.at == simulated.at[first:]
    with pytest.raises(ValueError, match="reads from step 4 on; measure later steps"):
        evaluate(snn, (X, y), at=(2, 8), readout=MeanOutput(start=3))
    rule = Confidence(0.5)
    found, run = evaluate(snn, [(X[:25], y[:25]), (X[25:], y[25:])], exit=rule), cx.simulate(snn, X, T, exit=rule)
    assert run.steps is not None
    assert found.mean_steps == float(run.steps.double().mean()) < T
    assert found.score.tolist() == [float((run.output.argmax(1) == y).double().mean())]
    with pytest.raises(TypeError, match="no option speed; a run takes readout, time_chunk"):
        evaluate(snn, (X, y), speed=1)


@torch.no_grad()
def test_arguments_are_not_taken_for_others():
    ann = network(4)
    snn, y = converted(ann), ann(X).argmax(1)
    for at in ("32", (1.9,), 1.5, (True,), ["2"]):
        with pytest.raises(ValueError, match="name whole steps such as"):
            cx.simulate(snn, X, T, at=at)
    assert cx.simulate(snn, X, T, at=4).at == (4,)
    assert cx.simulate(snn, X, T, at=torch.tensor([2, 4])).at == (2, 4)
    for bad in (0, True, 2.5, "8"):
        with pytest.raises((ValueError, TypeError), match="integer >= 1"):
            cx.simulate(snn, X, bad)
    assert cx.forecast(snn, (X, y), (t for t in (4, 1)), progress=False).T == (1, 4)
    for call in (cx.simulate, cx.evaluate):
        data = X if call is cx.simulate else (X, y)
        with pytest.raises(ValueError, match=r"reads from step 10 on, and the last output is that of step 8"):
            call(snn, data, T, readout=MeanOutput(start=9))


class Frozen(nn.Module):
    """A network that keeps its BatchNorm in evaluation while the rest is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_the_ann_has_its_modes_again():
    ann = Frozen().train()
    ann.body[1].eval()
    modes = [module.training for module in ann.modules()]
    before = copy.deepcopy(ann.state_dict())
    snn = converted(ann)
    with torch.no_grad():
        y = copy.deepcopy(ann).eval()(X).argmax(1)
    evaluate(snn, (X, y), ann=ann)
    cx.forecast(snn, (X, y), ann=ann, progress=False)
    cx.tune(ann, X, 2, backend="reference", progress=False, budget=1e-6)
    with pytest.raises(cx.CalibrationError):
        evaluate(snn, (X[:, :3], y), ann=ann)
    assert [module.training for module in ann.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in ann.state_dict().items())


def test_an_input_that_does_not_fit_names_its_shape():
    snn = converted(network(4))
    with pytest.raises(
        cx.CalibrationError, match=r"\[40, 3\] does not fit this network, which was converted for \[N, 6"
    ):
        cx.simulate(snn, X[:, :3], T)
