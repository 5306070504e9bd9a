"""What "right" means: measures of outputs against targets, added up over batches, steps and processes.

A metric turns a batch into sums that simply add, so that batches and processes may come in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from conversion_ext.errors import CalibrationError, require
from conversion_ext.graph.values import map_tensors, tensors_in
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
    "Score",
    "TopK",
    "chosen",
    "main_output",
    "metric_of",
    "metrics",
]

OUTPUT_KEYS = ("logits", "out", "output", "outputs", "prediction", "predictions")


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
        classes, counted = _classes(self, output, target)
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
        classes, counted = _classes(self, output, target)
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
        classes, counted = _classes(self, output, target)
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
    """A function ``(output, target) -> number or [N]``, the mean over samples; larger is better unless said.

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
        found = torch.as_tensor(self.function(output, target)).detach().cpu().double()
        require(
            found.dim() == 0 or found.shape == (N,),
            f"metric={self.name} returned {list(found.shape)} for {N} samples; return one number, or one per sample.",
        )
        return torch.stack(
            [found * N if found.dim() == 0 else found.sum(), torch.tensor(float(N), dtype=torch.float64)]
        )

    def decision(self, output: Any) -> None:
        """Return None: what a function would accept as right is not known."""
        return None


metrics: Registry[Metric] = Registry("metric")
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


def main_output(outputs: Any) -> tuple[Tensor, str]:
    """Return the tensor of a nested output that is measured, and what to say where there were several."""
    if isinstance(outputs, Tensor):
        return outputs, ""
    if isinstance(outputs, Mapping):
        key = next((k for k in OUTPUT_KEYS if k in outputs), next(iter(outputs)) if len(outputs) == 1 else None)
        require(
            key is not None,
            f"The network returns a dict with {sorted(map(str, outputs))}, none of them one of "
            f"{', '.join(OUTPUT_KEYS)}; pass metric=, a function of (output, target).",
        )
        return main_output(outputs[key])[0], f"of output {key!r}"
    leaves = tensors_in(outputs)
    require(bool(leaves), "The network returns no tensor; pass metric=, a function of (output, target).")
    return leaves[0], f"of the first of {len(leaves)} outputs" if len(leaves) > 1 else ""


def chosen(output: Tensor, target: Any, sigmoid: bool = False) -> tuple[Metric, str]:
    """Return the metric that outputs [N, ...] and targets of a batch ask for, and why; raise where several fit.

    ``sigmoid``: the network ends in a sigmoid, so its outputs are probabilities.
    """
    require(
        isinstance(target, Tensor) and target.dim() >= 1 and len(target) == len(output) and output.dim() >= 1,
        f"Outputs {list(output.shape)} and {_told(target)} do not fit together; pass metric=, a function of "
        "(output, target).",
        CalibrationError,
    )
    real = target.is_floating_point()
    whole = not real or bool((target == target.round()).all())
    binary = whole and bool(((target == 0) | (target == 1)).all())
    single = output.numel() == len(output)
    logits = BinaryAccuracy(0.5 if sigmoid else 0.0)
    if single and target.numel() == len(target):
        if binary:
            return logits, "one output per sample, and targets 0 and 1"
        signs = whole and bool((target.abs() == 1).all())
        require(real and not signs, _ambiguous(output, target, "'rmse', or 'binary_accuracy' with targets 0 and 1"))
        return RMSE(), "one output and one real target per sample"
    C = output.shape[1] if output.dim() > 1 else 1
    numbers = whole and (target.numel() == len(target) or target.shape == (len(output), *output.shape[2:]))
    if numbers and C > 1 and output.dim() == 2:
        return Accuracy(), "targets are class numbers"
    if numbers and C > 1 and target.shape[1:] == output.shape[2:]:
        return (
            (MIOU(), "targets are class numbers of positions")
            if output.dim() > 3
            else (Accuracy(), "targets are class numbers of positions")
        )
    if target.shape == output.shape and binary:
        hot = bool((target.flatten(2).sum(1) == 1).all()) if target.dim() > 2 else bool((target.sum(1) == 1).all())
        return (Accuracy(), "targets are one-hot") if hot else (logits, "targets are 0 or 1 for each output")
    if target.shape == output.shape and real:
        odds = (
            output.dim() == 2 and C > 1 and bool((target >= 0).all()) and bool(((target.sum(1) - 1).abs() < 1e-4).all())
        )
        require(not odds, _ambiguous(output, target, "'accuracy' for class probabilities or 'rmse' for real targets"))
        return RMSE(), "targets are real numbers, one for each output"
    raise CalibrationError(_ambiguous(output, target, "a function of (output, target)"))


def _ambiguous(output: Tensor, target: Tensor, choice: str) -> str:
    return f"Outputs {list(output.shape)} and {_told(target)} do not name one measure; pass metric=, {choice}."


def _told(target: Any) -> str:
    if isinstance(target, Tensor):
        return f"targets {list(target.shape)} of {str(target.dtype).removeprefix('torch.')}"
    return f"a target of type {type(target).__name__}"


def _classes(metric: Metric, output: Any, target: Any) -> tuple[Tensor, Tensor]:
    """Return class numbers [N, ...] for outputs [N, C, ...], and which of them count."""
    require(
        isinstance(target, Tensor) and output.dim() >= 2 and output.shape[1] > 1 and len(target) == len(output),
        f"metric='{metric.name}' needs outputs [N, C, ...] of C > 1 classes and a target for each sample, got "
        f"{list(output.shape)} and {_told(target)}.",
    )
    C, spatial = output.shape[1], output.shape[2:]
    if target.shape == output.shape and not (target.dim() == 2 and C == 1):
        return target.argmax(1), torch.ones_like(target[:, 0], dtype=torch.bool)
    fits = target.numel() == len(target) * math.prod(spatial)
    require(
        fits and (not target.is_floating_point() or bool((target == target.round()).all())),
        f"metric='{metric.name}': {_told(target)} are no class numbers for outputs {list(output.shape)}; pass class "
        "numbers [N, ...] or one-hot rows.",
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
        f"metric='{metric.name}' compares value by value, and outputs {list(output.shape)} do not fit {_told(target)}.",
    )
    return target.double().reshape(output.shape)


class Score:
    """A metric at each of several steps, added up over batches and processes; the first batch may choose it.

    ``sigmoid``: the network ends in a sigmoid.
    """

    def __init__(self, metric: Any = None, sigmoid: bool = False) -> None:
        self.metric, self.reason, self.sigmoid = metric_of(metric), "", sigmoid
        self.sums: Tensor | None = None

    def settle(self, output: Any, target: Any) -> Metric:
        """Return the metric, chosen from an output [N, ...] and its target where none was named.

        Without a target (None) it is the one that compares with the decisions of another network.
        """
        if self.metric is None:
            tensor, part = main_output(output)
            if target is None:
                self.metric = Accuracy() if tensor.dim() >= 2 and tensor.shape[1] > 1 else RMSE()
                self.reason = "against the ANN, without targets"
            else:
                self.metric, self.reason = chosen(tensor.detach().cpu(), _local(target), self.sigmoid)
            self.reason += f", {part}" if part else ""
        return self.metric

    def add(self, outputs: Any, target: Any) -> None:
        """Add a batch: outputs [steps, N, ...], nested as the network's, and its target."""
        outputs, target = _local(outputs), _local(target)
        metric = self.settle(map_tensors(outputs, lambda v: v[-1]), target)
        if not isinstance(metric, Custom):
            outputs = main_output(outputs)[0]
        steps = len(tensors_in(outputs)[0])
        sums = torch.stack([metric.sums(map_tensors(outputs, lambda v, i=i: v[i]), target) for i in range(steps)])
        self.sums = sums if self.sums is None else self.sums + sums

    def merge(self, other: Score) -> None:
        """Add what another process has."""
        if other.sums is not None:
            self.metric, self.reason = other.metric, other.reason
            self.sums = other.sums if self.sums is None else self.sums + other.sums

    def values(self) -> Tensor | None:
        """Return the measure [steps], None where there was nothing to measure."""
        if self.sums is None or self.metric is None:
            return None
        return torch.tensor([self.metric.value(row) for row in self.sums], dtype=torch.float64)


def _local(value: Any) -> Any:
    return map_tensors(value, lambda v: v.detach().cpu())
