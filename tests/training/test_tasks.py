"""cx.finetune for tasks other than choosing one of several classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import conversion_ext as cx
from conversion_ext.training import Distillation, OutputDistillation, RateDistillation, Training, losses
from conversion_ext.training.task_losses import BinaryCrossEntropy, OutputSquaredError
from tests.live import perceptron

pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data")
T = 2
X = torch.rand(120, 6, generator=torch.Generator().manual_seed(0))


def network(outputs: int) -> nn.Module:
    return perceptron(6, 32, outputs)


class Maps(nn.Module):
    """A segmentation network that returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.out, self.aux = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 3, 1), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.one(x).relu()
        return {"aux": self.aux(y), "out": self.out(y)}


def tuned(ann: nn.Module, data: Any, x: Any = X, **options: Any) -> Any:
    snn = cx.convert(ann, x, backend="reference", progress=False)
    if isinstance(data, tuple):
        options = {"validation": data} | options
        data = list(zip(*(part.split(12) for part in data), strict=True))
    return cx.finetune(snn, data, T=T, epochs=6, training=Training(rate=0.02), progress=False, **options)


SUM = X.sum(1)
MASKS = torch.rand(60, 2, 5, 5, generator=torch.Generator().manual_seed(1))
TASKS = {
    "one logit": (network(1), (X, (SUM > 3).long()), "binary_accuracy"),
    "multi-label": (network(3), (X, (X[:, :3] > 0.5).float()), "binary_accuracy"),
    "regression": (network(1), (X, SUM), "rmse"),
    "regression of several": (network(2), (X, X[:, :2] * 2 - 1), "rmse"),
    "one-hot": (network(3), (X, F.one_hot((X[:, :3]).argmax(1))), "accuracy"),
    "class numbers [N, 1]": (network(3), (X, X[:, :3].argmax(1)[:, None].float()), "accuracy"),
    "segmentation": (Maps(), (MASKS, (2 * MASKS.mean(1) + 0.5).long()), "miou"),
}


@pytest.mark.parametrize("task", TASKS)
def test_training_gets_better_at_its_task(task):
    ann, data, metric = TASKS[task]
    found = tuned(ann, data, data[0][:40])
    assert found.metric == metric
    scores = [epoch.score for epoch in found.history]
    best, start = scores[found.best], scores[0]
    assert found.best > 0
    assert best < 0.7 * start if metric == "rmse" else best > start + 0.05
    again = cx.evaluate(found.snn, data, T, progress=False)
    assert float(again.score[-1]) == pytest.approx(best)
    assert found.history[-1].loss < found.history[1].loss


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_teacher_of_real_outputs_is_followed_without_labels(outputs):
    ann = network(outputs)
    found = tuned(ann, [X[:60], X[60:]], teacher=ann)
    assert found.history[-1].score != found.history[0].score or found.best == 0
    assert len(found.history) == 7


def test_losses_of_values_are_their_formulas():
    outputs, target = torch.randn(T, 5, 3).double(), torch.randint(2, (5, 3))
    mean = outputs.mean(0)
    expected = -(target * mean.sigmoid().log() + (1 - target) * (-mean).sigmoid().log()).mean()
    torch.testing.assert_close(losses.loss_of("binary")(outputs, target), expected)
    torch.testing.assert_close(
        BinaryCrossEntropy(logits=False)(outputs.sigmoid(), target),
        F.binary_cross_entropy(outputs.sigmoid().mean(0), target.double()),
    )
    torch.testing.assert_close(
        OutputSquaredError()(outputs[:, :, :1], target[:, 0]), (mean[:, 0] - target[:, 0]).square().mean()
    )
    torch.testing.assert_close(OutputDistillation(2.0)(outputs, mean + 1), torch.tensor(2.0).double())
    with pytest.raises(ValueError, match=r"takes \[T, N, ...\]"):
        OutputSquaredError()(outputs, target[:, 0])
    with pytest.raises(ValueError, match=r"one output per sample; use OutputDistillation"):
        Distillation()(outputs[:, :, :1], mean[:, :1])
    assert RateDistillation() != OutputDistillation()


def test_class_targets_in_every_form_give_the_same_loss():
    outputs, classes = torch.randn(T, 6, 4), torch.arange(6) % 4
    loss = losses.loss_of("rate")
    expected = F.cross_entropy(outputs.mean(0), classes)
    for target in (classes, classes[:, None], classes.double(), F.one_hot(classes), F.one_hot(classes).float()):
        torch.testing.assert_close(loss(outputs, target), expected)
    maps, mask = torch.randn(T, 2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    mask[0, 0] = 255
    torch.testing.assert_close(loss(maps, mask), F.cross_entropy(maps.mean(0), mask, ignore_index=255))
    with pytest.raises(ValueError, match="class 4, and the network has outputs for classes 0 to 3"):
        loss(outputs, classes + 1)
