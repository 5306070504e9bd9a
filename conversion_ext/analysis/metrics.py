"""What "right" means: measures of outputs against targets, added up over batches, steps and processes.

A metric turns a batch into sums that simply add, so that batches and processes may come in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.graph.values import tensors_in
from conversion_ext.registry import Registry

__all__ = [
    "MIOU",
    "R2",
    "RMSE",
    "Accuracy",
    "BinaryAccuracy",
    "Correlation",
    "Custom",
    "Metric",
    "TopK",
    "class_numbers",
    "metric_of",
    "metrics",
    "told_of",
]


@dataclass(frozen=True)
class Metric:
    """Base of all metrics: ``value(sum over batches of sums(output, target))`` is one number.

    ``output`` [N, ...] is the decoded output, ``target`` what the data gives. ``decision`` is the target that a
    network with this output would match exactly: what an SNN is compared with to measure agreement with its ANN.
    ``share``: whether values are fractions in [0, 1].
    """

    share: ClassVar[bool] = True

    @property
    def maximize(self) -> bool:
        """Whether larger values are better."""
        return True

    @property
    def name(self) -> str:
        """The name it is registered under."""
        return next((n for n, metric in metrics.items() if metric == self), repr(self))

    def sums(self, output: Any, target: Any) -> Tensor:
        """Return the sums [K] in float64 of one batch."""
        raise TypeError(f"{type(self).__name__} must define sums().")

    def value(self, sums: Tensor) -> float:
        """Return the measure for sums [K]; by default the first over the second."""
        return float(sums[0] / sums[1])

    def decision(self, output: Tensor) -> Tensor | None:
        """Return the target [N, ...] that ``output`` matches exactly, None where there is no such thing."""
        return output

    def shown(self, value: float) -> str:
        """Return a value as text."""
        return f"{100 * value:.2f} %" if self.share else f"{value:.4g}"


@dataclass(frozen=True)
class Accuracy(Metric):
    """The share of samples (or pixels) whose largest output [N, C, ...] is that of the class, target [N, ...].

    Targets are class numbers, also as [N, 1] or whole floats, or one-hot rows [N, C]. Negative numbers and 255 (the
    usual marks for "ignore") are left out.
    """

    def sums(self, output: Any, target: Any) -> Tensor:
        """Count what is right, and what counts."""
        classes, counted = class_numbers(output, target, f"metric='{self.name}'")
        right = (output.argmax(1) == classes) & counted
        return torch.stack([right.sum(), counted.sum()]).double()

    def decision(self, output: Tensor) -> Tensor:
        """Return the class of the largest output."""
        return output.argmax(1)


@dataclass(frozen=True)
class TopK(Accuracy):
    """The share of samples whose class is among the ``k`` largest outputs [N, C, ...]."""

    k: int = 5

    def sums(self, output: Any, target: Any) -> Tensor:
        """Count what is among the k, and what counts."""
        classes, counted = class_numbers(output, target, f"metric='{self.name}'")
        require(
            output.shape[1] > self.k,
            f"metric: one of the {self.k} largest of {output.shape[1]} outputs is always right; use metric='accuracy'.",
        )
        right = (output.topk(self.k, 1).indices == classes.unsqueeze(1)).any(1) & counted
        return torch.stack([right.sum(), counted.sum()]).double()


@dataclass(frozen=True)
class BinaryAccuracy(Metric):
    """The share of outputs on the right side of ``threshold``: logits [N], [N, 1] or [N, labels] against 0 and 1.

    ``threshold`` is 0 for logits; use 0.5 for a network that ends in a sigmoid.
    """

    threshold: float = 0.0

    def sums(self, output: Any, target: Any) -> Tensor:
        """Count what is right, and all."""
        target = _like(self, output, target)
        require(bool(((target == 0) | (target == 1)).all()), f"{self} takes targets 0 and 1, got others.")
        return torch.stack([((output > self.threshold) == (target > 0)).sum(), torch.tensor(target.numel())]).double()

    def decision(self, output: Tensor) -> Tensor:
        """Return 0 or 1 for each output."""
        return (output > self.threshold).to(output.dtype)


@dataclass(frozen=True)
class MIOU(Metric):
    """Mean over classes of intersection over union: outputs [N, C, ...] against class numbers [N, ...].

    Classes that neither occur nor are decided on are left out, as are positions with a negative target or 255.
    """

    def sums(self, output: Any, target: Any) -> Tensor:
        """Count intersections and unions of each class, [2 C]."""
        classes, counted = class_numbers(output, target, f"metric='{self.name}'")
        C, decided, truth = output.shape[1], output.argmax(1)[counted], classes[counted]
        both = torch.bincount(decided[decided == truth], minlength=C)
        union = torch.bincount(decided, minlength=C) + torch.bincount(truth, minlength=C) - both
        return torch.cat([both, union]).double()

    def value(self, sums: Tensor) -> float:
        """Return the mean over the classes that occur."""
        both, union = sums.chunk(2)
        return float((both[union > 0] / union[union > 0]).mean())

    def decision(self, output: Tensor) -> Tensor:
        """Return the class of each position."""
        return output.argmax(1)


@dataclass(frozen=True)
class RMSE(Metric):
    """Root mean squared error of real outputs; smaller is better."""

    share = False

    @property
    def maximize(self) -> bool:
        """Whether larger values are better: no."""
        return False

    def sums(self, output: Any, target: Any) -> Tensor:
        """Add up squared errors."""
        error = output.double() - _like(self, output, target)
        return torch.stack([error.square().sum(), torch.tensor(float(error.numel()), dtype=torch.float64)])

    def value(self, sums: Tensor) -> float:
        """Return the root of their mean."""
        return math.sqrt(float(sums[0] / sums[1]))


@dataclass(frozen=True)
class R2(Metric):
    """Coefficient of determination ``1 - sum (y - o)^2 / sum (y - mean y)^2``, the mean over outputs [N, D]."""

    share = False

    def sums(self, output: Any, target: Any) -> Tensor:
        """Return [n], and for each output sums of y, y^2 and (y - o)^2, [1 + 3 D]."""
        y = _like(self, output, target).flatten(1)
        parts = (y, y.square(), (y - output.double().flatten(1)).square())
        return torch.cat([torch.full((1,), float(len(y)), dtype=torch.float64), *(part.sum(0) for part in parts)])

    def value(self, sums: Tensor) -> float:
        """Return 1 - residual / total."""
        total, squares, residual = sums[1:].chunk(3)
        return float((1 - residual / (squares - total.square() / sums[0])).mean())


@dataclass(frozen=True)
class Correlation(Metric):
    """Pearson's correlation of each output with its target, the mean over outputs [N, D]."""

    share = False

    def sums(self, output: Any, target: Any) -> Tensor:
        """Return [n], and for each output sums of o, y, o^2, y^2 and o y, [1 + 5 D]."""
        y, o = _like(self, output, target).flatten(1), output.double().flatten(1)
        parts = (o, y, o.square(), y.square(), o * y)
        return torch.cat([torch.full((1,), float(len(y)), dtype=torch.float64), *(part.sum(0) for part in parts)])

    def value(self, sums: Tensor) -> float:
        """Return covariance over both standard deviations."""
        n = sums[0]
        o, y, oo, yy, oy = sums[1:].chunk(5)
        return float(((n * oy - o * y) / ((n * oo - o * o) * (n * yy - y * y)).sqrt()).mean())


@dataclass(frozen=True)
class Custom(Metric):
    """A function ``(output, target) -> number or [N]``, the mean over samples; larger is better by default.

    It is given the output in the structure that the network has, and the target as the data gives it.
    """

    function: Callable[[Any, Any], Any]
    larger_is_better: bool = True
    share = False

    @property
    def maximize(self) -> bool:
        """Whether larger values are better."""
        return self.larger_is_better

    @property
    def name(self) -> str:
        """The name of the function."""
        return getattr(self.function, "__name__", repr(self.function))

    def sums(self, output: Any, target: Any) -> Tensor:
        """Return the function's sum over samples, and how many there are."""
        N = len(tensors_in(output)[0])
        try:
            value = torch.as_tensor(self.function(output, target)).detach().cpu().double()
        except Exception as error:
            why = str(error).strip().partition("\n")[0].rstrip(".")
            raise ValueError(
                f"metric={self.name} failed on outputs and targets of one batch: {type(error).__name__}: {why}. It is "
                "called as metric(output, target), and returns one number, or one per sample."
            ) from error
        require(
            value.dim() == 0 or value.shape == (N,),
            f"metric={self.name} returned {list(value.shape)} for {N} samples; return one number, or one per sample.",
        )
        return torch.stack(
            [value * N if value.dim() == 0 else value.sum(), torch.tensor(float(N), dtype=torch.float64)]
        )

    def decision(self, output: Any) -> None:
        """Return None: what a function would accept as right is not known."""
        return None


metrics: Registry[Metric] = Registry("metric", lambda value: isinstance(value, Metric), "a Metric")
for _name, _metric in {
    "accuracy": Accuracy(), "top5": TopK(), "binary_accuracy": BinaryAccuracy(), "miou": MIOU(), "rmse": RMSE(),
    "r2": R2(), "correlation": Correlation(),
}.items():  # fmt: skip
    metrics.register(_name, _metric)


def metric_of(metric: Any) -> Metric | None:
    """Return the metric for a name, a function or a value; None for None, which leaves the choice to the targets."""
    if metric is None or isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        return metrics.get(metric)
    require(
        callable(metric) and not isinstance(metric, type),
        f"metric={metric!r}: give a name ({', '.join(metrics.names())}), a value such as TopK(3), or a function "
        "(output, target) -> number.",
        TypeError,
    )
    return Custom(metric)


def told_of(target: Any) -> str:
    """Return a target in words."""
    if isinstance(target, Tensor):
        return f"targets {list(target.shape)} of {str(target.dtype).removeprefix('torch.')}"
    return f"a target of type {type(target).__name__}"


def class_numbers(output: Tensor, target: Any, what: str) -> tuple[Tensor, Tensor]:
    """Return class numbers [N, ...] for outputs [N, C, ...], and which of them count; ``what`` asks for them.

    Targets are class numbers, also as [N, 1] or whole floats, or one-hot [N, C, ...]; negative ones and 255 do not
    count.
    """
    require(
        isinstance(target, Tensor) and output.dim() >= 2 and output.shape[1] > 1 and len(target) == len(output),
        f"{what} needs outputs [N, C, ...] of C > 1 classes and a target for each sample, got {list(output.shape)} and "
        f"{told_of(target)}.",
    )
    C, spatial = output.shape[1], output.shape[2:]
    if target.shape == output.shape:
        return target.argmax(1), torch.ones_like(target[:, 0], dtype=torch.bool)
    fits = target.numel() == len(target) * math.prod(spatial)
    require(
        fits and (not target.is_floating_point() or bool((target == target.round()).all())),
        f"{what}: {told_of(target)} are no class numbers for outputs {list(output.shape)}; pass class numbers [N, ...] "
        "or one-hot rows.",
    )
    classes = target.reshape(len(target), *spatial).long()
    counted = (classes >= 0) & ((classes < C) | (classes != 255))
    require(
        bool((classes[counted] < C).all()),
        f"The targets name class {int(classes.max())}, and the network has outputs for classes 0 to {C - 1}.",
    )
    return classes, counted


def _like(metric: Metric, output: Any, target: Any) -> Tensor:
    """Return the target in float64 and in the shape of the output: never let [N] meet [N, 1] by broadcasting."""
    fits = isinstance(target, Tensor) and target.shape[:1] == output.shape[:1] and target.numel() == output.numel()
    require(
        fits and (target.shape == output.shape or target.numel() == len(target)),
        f"metric='{metric.name}' compares value by value, and outputs {list(output.shape)} do not fit "
        f"{told_of(target)}.",
    )
    return target.double().reshape(output.shape)
