"""Six conversions broken on purpose: the diagnosis names the cause first, and its repair repairs."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import conversion_ext as cx
from conversion_ext.analysis.causes import Cause, Remedy
from conversion_ext.analysis.diagnosis import Diagnosis, diagnose
from conversion_ext.data.datasets import Dataset, load
from conversion_ext.demo.demo import train

GOOD = cx.Recipe(cx.Percentile(99.9))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    pytest.importorskip("sklearn")
    return load("digits")


@pytest.fixture(scope="module")
def ann(digits) -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    torch.manual_seed(0)
    layers = [*block(1, 16), nn.MaxPool2d(2), *block(16, 32), nn.MaxPool2d(2), *block(32, 32)]
    ann = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4, 10))
    train(ann, TensorDataset(*digits.train.tensors), 5, progress=False)
    return ann


def converted(ann: nn.Module, data: torch.Tensor, recipe: cx.Recipe = GOOD):
    return cx.convert(ann, data, recipe=recipe, backend="reference", progress=False)


def test_a_good_conversion_has_no_cause(ann, digits):
    x, y = (part[:200] for part in digits.test.tensors)
    found = diagnose(converted(ann, digits.calibration.tensors[0]), ann, (x, y), 64)
    assert found.agreement[-1] > 0.97
    assert not found.causes or found.causes[0].gain < 0.03
    assert (found.T, found.samples, len(found.agreement)) == (64, 100, 64)


@pytest.mark.parametrize(
    ("recipe", "change", "T", "name"),
    [
        (cx.Recipe(cx.Percentile(50.0)), lambda x: x, 32, "clipping"),
        (GOOD, lambda x: 32 * x, 32, "input scale"),
        (GOOD, lambda x: 0.2 * x, 32, "uncalibrated range"),
        (GOOD, lambda x: x, 1, "too few steps"),
        (cx.Recipe(cx.Percentile(99.9), max_pool="instant"), lambda x: x, 64, "max-pooling"),
    ],
    ids=[
        "percentile 50",
        "calibrated on larger",
        "calibrated on dim",
        "T=1",
        "instant pool",
    ],
)
def test_the_cause_is_named_first_and_its_repair_helps(ann, digits, recipe, change, T, name):
    snn = converted(ann, change(digits.calibration.tensors[0]), recipe)
    x, y = (part[:300] for part in digits.test.tensors)
    found = diagnose(snn, ann, (x, y), T)
    assert found.causes[0].name == name, str(found)
    assert found.causes[0].gain > 0.01
    assert f"1. {name}: " in str(found)


def test_every_cheap_remedy_is_measured_on_samples_that_did_not_calibrate_it(ann, digits):
    data, (x, y) = digits.calibration.tensors[0], (part[:120] for part in digits.test.tensors)
    snn = converted(ann, data, cx.Recipe(cx.Percentile(80.0)))
    found = diagnose(snn, ann, (x, y), 2)
    gains = {remedy.sentence: remedy.gain for remedy in found.remedies}
    for name in ("Percentile(99.9)", "T=8", '"default"', "lookahead", "copies", "tuned"):
        assert [gain for sentence, gain in gains.items() if name in sentence and gain is not None], name

    def agreement(network: nn.Module, T: int) -> float:
        return float((cx.simulate(network, x[1::2], T).output.argmax(1) == ann(x[1::2]).argmax(1)).double().mean())

    now = agreement(snn, 2)
    assert found.agreement[-1] == now
    assert gains["Simulate T=8 steps"] == pytest.approx(agreement(snn, 8) - now)
    for name in ("default", "default-copies", "default-tuned"):
        repaired = cx.convert(ann, x[::2], T=2, recipe=name, backend="reference", progress=False)
        assert gains[f'Convert with T=2, recipe="{name}"'] == pytest.approx(agreement(repaired, 2) - now)
    costs = {remedy.sentence: remedy.cost for remedy in found.remedies}
    assert "2 x the neurons" in costs['Convert with T=2, recipe="default-copies"']
    assert "latency" in costs['Convert with T=2, recipe="default-lookahead"']


def test_a_tuning_of_minutes_is_named_and_not_run(ann, digits, monkeypatch):
    monkeypatch.setattr("conversion_ext.analysis.case.MOST_WORK", 1.0)
    x, y = (part[:40] for part in digits.test.tensors)
    found = diagnose(converted(ann, digits.calibration.tensors[0], cx.Recipe(cx.Percentile(70.0))), ann, (x, y), 2)
    (tuned,) = [remedy for remedy in found.remedies if "tuned" in remedy.sentence]
    assert (tuned.gain, tuned.cost) == (None, "not measured, it takes minutes")


def test_facts_beside_the_errors(ann, digits):
    data, x = digits.calibration.tensors[0], digits.test.tensors[0][:80]
    good, dim = (diagnose(converted(ann, scale * data), ann, x, 16) for scale in (1.0, 0.2))
    assert good.outside is not None
    assert dim.outside is not None
    assert good.outside < 0.2 < 0.9 < dim.outside
    late = [abs(value - good.agreement[-1]) <= 0.01 + 1e-9 for value in good.agreement]
    assert all(late[good.settled - 1 :])
    assert good.settled == 1 or not late[good.settled - 2]
    assert "beyond the calibrated range" in str(dim)
    graded = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 3))
    assert diagnose(converted(graded, x), graded, x, 4).graded == ("4",)


def test_sequences_are_diagnosed(ann, digits):
    noise = 2 * torch.rand(12, 160, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    frames = digits.test.tensors[0][:160] * noise  # [T, N, ...], the images on average
    with torch.no_grad():
        y = ann(frames.flatten(0, 1)).unflatten(0, (12, 160)).mean(0).argmax(1)
    options = {"sequence": True, "backend": "reference", "progress": False}
    found = diagnose(cx.convert(ann, frames, recipe=cx.Recipe(cx.Percentile(50.0)), **options), ann, [(frames, y)], 12)
    assert (found.samples, len(found.agreement), found.ann_accuracy) == (80, 12, 1.0)
    assert found.causes[0].name == "clipping", str(found)
    again = cx.convert(ann, frames[:, ::2], recipe="frames", **options)
    best = cx.evaluate(again, [(frames[:, 1::2], y[1::2])], 12, progress=False).accuracy[-1]
    gains = {remedy.sentence: remedy.gain for remedy in found.remedies}
    assert gains['Convert with T=12, recipe="frames"'] == pytest.approx(float(best) - found.agreement[-1])
    assert not [sentence for sentence in gains if "Simulate" in sentence]


def test_a_dead_layer_is_a_fault_of_the_ann(ann, digits):
    broken = copy.deepcopy(ann)
    broken[5].bias.data -= 100  # BatchNorm before the second ReLU
    x, y = (part[:100] for part in digits.test.tensors)
    found = diagnose(converted(broken, digits.calibration.tensors[0]), broken, (x, y), 8)
    assert found.causes[0].name == "dead layer"
    assert "of 6 is positive" in found.causes[0].sentence
    assert {fact.key: fact.silent for fact in found.sites}["6"] == 1
    assert found.ann_accuracy is not None
    assert found.ann_accuracy < 0.3


def test_nothing_is_changed_and_labels_are_optional(ann, digits):
    snn = converted(ann, digits.calibration.tensors[0])
    states = [copy.deepcopy(net.state_dict()) for net in (snn, ann)]
    found = diagnose(snn, ann, digits.test.tensors[0][:40], 4)
    assert (found.accuracy, found.ann_accuracy) == (None, None)
    for net, before in zip((snn, ann), states, strict=True):
        for key, value in net.state_dict().items():
            assert not isinstance(value, torch.Tensor) or torch.equal(value, before[key])


def test_outputs_that_are_no_classes_are_compared_by_their_error():
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    x = torch.rand(64, 6)
    found = diagnose(converted(ann, x), ann, x, 16)
    output, expected = cx.simulate(converted(ann, x), x[1::2], 16).output, ann(x[1::2]).detach()
    assert found.agreement[-1] == pytest.approx(1 - float((output - expected).norm() / expected.norm()), abs=1e-6)


def test_the_report_is_one_file_without_outside_resources(ann, digits, tmp_path):
    snn = converted(ann, digits.calibration.tensors[0], cx.Recipe(cx.Percentile(50.0)))
    found = diagnose(snn, ann, tuple(part[:40] for part in digits.test.tensors), 8)
    page = found.html(tmp_path / "report.html").read_text("utf-8")
    assert not re.findall(r"(?:src|href)=|url\(|@import|<script", page)
    assert "viewport" in page
    for fact in found.sites:
        assert f"<td>{fact.key}</td><td>{fact.firing_rate:.4f}</td>" in page
    assert all(cause.name in page for cause in found.causes)
    assert json.loads(json.dumps(found.to_dict()))["T"] == 8
    assert len(str(found).splitlines()) < 40
    pytest.importorskip("matplotlib")
    assert len(found.plot().axes) == 1


def test_text_in_a_report_is_escaped():
    cause = Cause("<b>", "a < b & c", (Remedy("<i>"),))
    found = Diagnosis(1, 8, (0.5,), 0.5, None, None, 1, 1.0, 1, (cause,), (), None, ("<note>",))
    page = found._repr_html_()
    assert "a &lt; b &amp; c" in page
    assert "<note>" not in page


def test_what_cannot_be_diagnosed_is_refused(ann, digits):
    x = digits.test.tensors[0]
    with pytest.raises(TypeError, match="convert returned"):
        diagnose(ann, ann, x, 4)
    snn = converted(ann, digits.calibration.tensors[0])
    with pytest.raises(ValueError, match="T=0"):
        diagnose(snn, ann, x, 0)
    with pytest.raises(cx.CalibrationError, match="at least 8"):
        diagnose(snn, ann, x[:5], 4)
