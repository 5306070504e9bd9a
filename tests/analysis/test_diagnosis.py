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
