"""Metrics against their textbook formulas in numpy, in one batch and in several."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from conversion_ext.analysis.metrics import BinaryAccuracy, Custom, TopK, metric_of, metrics
from conversion_ext.analysis.scores import Comparison, Score, chosen, main_output
from conversion_ext.errors import CalibrationError, UnknownNameError

GENERATOR = torch.Generator().manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def measured(name, output: Tensor, target: Tensor, parts: int = 1) -> float:
    """Return the measure of outputs that come in ``parts`` batches, on two processes."""
    scores = [Score(name), Score(name)]
    for i, (o, t) in enumerate(zip(output.chunk(parts), target.chunk(parts), strict=True)):
        scores[i % 2].add(o.unsqueeze(0), t)
    scores[0].merge(scores[1])
    values = scores[0].values()
    assert values is not None
    return float(values)


def iou(o: Tensor, t: Tensor) -> float:
    decided, found = o.argmax(1).numpy(), []
    truth = t.numpy()
    seen = truth != 255
    for c in range(o.shape[1]):
        a, b = (decided == c) & seen, (truth == c) & seen
        if (a | b).any():
            found.append((a & b).sum() / (a | b).sum())
    return float(np.mean(found))


def cases():
    y, o = rand(30, 3).double() + 5, rand(30, 3).double() + 5
    classes, logits = torch.randint(7, (30,), generator=GENERATOR), rand(30, 7)
    mask, maps = torch.randint(4, (6, 5, 5), generator=GENERATOR), rand(6, 4, 5, 5)
    mask[:, 0] = 255
    labels, signs = torch.randint(2, (30, 4), generator=GENERATOR), rand(30, 4)
    order = logits.argsort(1, descending=True)
    yn, on = y.numpy(), o.numpy()
    return {
        "accuracy": (logits, classes, float((logits.argmax(1) == classes).double().mean())),
        "top5": (logits, classes, float(np.mean([int(c) in order[i, :5] for i, c in enumerate(classes)]))),
        "binary_accuracy": (signs, labels, float(((signs > 0).long() == labels).double().mean())),
        "miou": (maps, mask, iou(maps, mask)),
        "rmse": (o, y, math.sqrt(np.mean((yn - on) ** 2))),
        "r2": (o, y, float(np.mean(1 - ((yn - on) ** 2).sum(0) / ((yn - yn.mean(0)) ** 2).sum(0)))),
        "correlation": (o, y, float(np.mean([np.corrcoef(on[:, i], yn[:, i])[0, 1] for i in range(3)]))),
    }


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", metrics.names())
def test_a_metric_is_its_formula_in_any_number_of_batches(name, parts):
    output, target, expected = cases()[name]
    assert measured(name, output, target, parts) == pytest.approx(expected, rel=1e-9)


def test_every_metric_has_a_formula_here():
    assert set(metrics.names()) == set(cases())


@pytest.mark.parametrize("name", metrics.names())
def test_what_agrees_with_a_decision_is_right(name):
    """An output agrees in full with the network that gives the same output."""
    output, *_ = cases()[name]
    metric = metrics.get(name)
    decision = metric.decision(output)
    assert decision is not None
    best = 0.0 if not metric.maximize else 1.0
    assert measured(metric, output, decision) == pytest.approx(best)


N = 12
ONE, FIVE = rand(N, 1), rand(N, 5)
CLASSES = torch.arange(N) % 5
CHOICES = {
    "class numbers": (FIVE, CLASSES, "accuracy"),
    "class numbers [N, 1]": (FIVE, CLASSES[:, None], "accuracy"),
    "whole floats": (FIVE, CLASSES.float(), "accuracy"),
    "one-hot": (FIVE, torch.nn.functional.one_hot(CLASSES, 5), "accuracy"),
    "one-hot floats": (FIVE, torch.nn.functional.one_hot(CLASSES, 5).float(), "accuracy"),
    "one logit, integers": (ONE, CLASSES % 2, "binary_accuracy"),
    "one logit, floats [N, 1]": (ONE, (CLASSES % 2).float()[:, None], "binary_accuracy"),
    "one logit [N], booleans": (ONE[:, 0], CLASSES > 2, "binary_accuracy"),
    "multi-label": (FIVE, (FIVE + rand(N, 5) > 0).float(), "binary_accuracy"),
    "regression [N]": (ONE, rand(N), "rmse"),
    "regression [N, 5]": (FIVE, rand(N, 5), "rmse"),
    "segmentation": (rand(N, 3, 4, 4), torch.randint(3, (N, 4, 4)), "miou"),
    "tagging": (rand(N, 3, 6), torch.randint(3, (N, 6)), "accuracy"),
}


@pytest.mark.parametrize("kind", CHOICES)
def test_targets_choose_the_metric(kind):
    output, target, name = CHOICES[kind]
    metric, reason = chosen(output, target)
    assert metric.name == name
    assert reason
    assert 0 <= measured(metric, output, target)


def test_probabilities_are_decided_at_one_half():
    output, target = torch.tensor([[0.2], [0.7]]), torch.tensor([0, 1])
    metric, _ = chosen(output, target, sigmoid=True)
    assert metric == BinaryAccuracy(0.5)
    assert measured(metric, output, target) == 1


AMBIGUOUS = {
    "integers for one output": (ONE, CLASSES),
    "signs for one output": (ONE, 2 * (CLASSES % 2).float() - 1),
    "class probabilities": (FIVE, rand(N, 5).softmax(1)),
    "shapes that do not fit": (FIVE, rand(N, 3)),
    "another number of samples": (FIVE, CLASSES[:5]),
    "no tensor": (FIVE, [1, 2]),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_what_names_no_metric_is_answered_in_a_sentence(kind):
    output, target = AMBIGUOUS[kind]
    with pytest.raises((ValueError, CalibrationError), match="pass metric="):
        chosen(output, target)


@pytest.mark.parametrize(
    ("metric", "output", "target", "message"),
    [
        ("accuracy", ONE, CLASSES, "needs outputs"),
        ("accuracy", FIVE, CLASSES + 1, "class 5, and the network has outputs for classes 0 to 4"),
        ("accuracy", FIVE, rand(N), "no class numbers"),
        ("rmse", FIVE, rand(N), "value by value"),
        ("rmse", ONE, rand(N, 1, 1, 2), "value by value"),
        ("binary_accuracy", ONE, CLASSES, "takes targets 0 and 1"),
        (TopK(5), FIVE, CLASSES, "always right"),
        (lambda o, t: o, FIVE, CLASSES, "one number, or one per sample"),
    ],
)
def test_what_does_not_fit_is_answered_in_a_sentence(metric, output, target, message):
    with pytest.raises(ValueError, match=message):
        Score(metric).add(output.unsqueeze(0), target)


def test_names_functions_and_values():
    assert metric_of(None) is None
    assert metric_of("top5") == TopK(5)
    assert measured(lambda o, t: (o.argmax(1) == t).double(), FIVE, CLASSES, 3) == measured("accuracy", FIVE, CLASSES)
    assert Custom(lambda o, t: 0.0, larger_is_better=False).maximize is False
    with pytest.raises(UnknownNameError, match="accuracy, top5"):
        metric_of("acuracy")
    with pytest.raises(TypeError, match="give a name"):
        metric_of(3)


def test_nested_outputs_are_measured_where_it_is_clear():
    assert main_output({"out": FIVE, "aux": ONE}) == (FIVE, "of output 'out'")
    assert main_output({"x": FIVE})[0] is FIVE
    assert main_output((FIVE, ONE)) == (FIVE, "of the first of 2 outputs")
    with pytest.raises(ValueError, match="none of them one of logits"):
        main_output({"a": FIVE, "b": ONE})
    seen = []
    Score(lambda o, t: seen.append(o) or 1.0).add({"a": FIVE[None], "b": ONE[None]}, CLASSES)
    assert seen[0].keys() == {"a", "b"}


def test_without_targets_the_ann_decides():
    scores = Comparison(None)
    said = rand(N, 5)
    scores.add(torch.stack([said, -said]), None, said)
    metric, score, agreement, ann = scores.values()
    assert metric.name == "accuracy"
    assert score.tolist() == [1, 0]
    assert agreement is not None
    assert agreement.tolist() == [1, 0]
    assert ann == 1
    with pytest.raises(CalibrationError, match="needs targets"):
        Comparison(lambda o, t: 1.0).add(said[None], None, said)
