"""Which metric the data asks for, and its sums over batches, steps and processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from conversion_ext.analysis.metrics import (
    MIOU,
    RMSE,
    Accuracy,
    BinaryAccuracy,
    Custom,
    Metric,
    metric_of,
    told_of,
)
from conversion_ext.errors import CalibrationError, require
from conversion_ext.graph.values import map_tensors, tensors_in, with_tensors

__all__ = ["Comparison", "Score", "chosen", "main_output", "stacked"]

OUTPUT_KEYS = ("logits", "out", "output", "outputs", "prediction", "predictions")


def main_output(outputs: Any) -> tuple[Tensor, str]:
    """Return the tensor of a nested output that is measured, and a note where there were several."""
    if isinstance(outputs, Tensor):
        return outputs, ""
    if isinstance(outputs, Mapping):
        key = next((k for k in OUTPUT_KEYS if k in outputs), next(iter(outputs)) if len(outputs) == 1 else None)
        require(
            key is not None,
            f"The network returns a dict with {sorted(map(str, outputs))}, none of them one of "
            f"{', '.join(OUTPUT_KEYS)}; name the main one so, which a training needs, or to measure pass metric=, a "
            "function of (output, target).",
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
        f"Outputs {list(output.shape)} and {told_of(target)} do not fit together; pass metric=, a function of "
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
    return f"Outputs {list(output.shape)} and {told_of(target)} do not name one measure; pass metric=, {choice}."


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
        measured = isinstance(self.metric, Custom) or bool(self.sums.any())
        require(
            measured,
            f"No target counts for metric={self.metric.name}: negative class numbers and 255 stand for 'ignore'.",
            CalibrationError,
        )
        return torch.tensor([self.metric.value(row) for row in self.sums], dtype=torch.float64)


def _local(value: Any) -> Any:
    return map_tensors(value, lambda v: v.detach().cpu())


def stacked(outputs: Sequence[Any]) -> Any:
    """Return outputs of several steps, nested alike, as one whose tensors are [steps, N, ...]."""
    leaves = zip(*(tensors_in(output) for output in outputs), strict=True)
    return with_tensors(outputs[0], iter([torch.stack(series) for series in leaves]))


class Comparison:
    """The scores of a network at several steps and of its ANN, and how far both agree."""

    def __init__(self, metric: Any, sigmoid: bool = False) -> None:
        self.score, self.same, self.ann = Score(metric, sigmoid), Score(), Score()

    def add(self, outputs: Any, target: Any, said: Any = None) -> None:
        """Add a batch: outputs [steps, N, ...], its target, and the output [N, ...] of the ANN where there is one.

        Without a target (None) the decisions of the ANN are the target.
        """
        last = map_tensors(outputs, lambda v: v[-1])
        metric = self.score.settle(last if said is None else said, target)
        decision = None if said is None or isinstance(metric, Custom) else metric.decision(main_output(said)[0])
        target = decision if target is None else target
        require(target is not None, f"metric={metric.name} needs targets; a batch has none.", CalibrationError)
        self.score.add(outputs, target)
        if said is not None:
            self.ann.metric = self.same.metric = metric
            self.ann.add(map_tensors(said, lambda v: v.unsqueeze(0)), target)
        if decision is not None:
            self.same.add(outputs, decision)

    def merge(self, other: Comparison) -> None:
        """Add what another process has."""
        for mine, theirs in ((self.score, other.score), (self.same, other.same), (self.ann, other.ann)):
            mine.merge(theirs)

    def values(self) -> tuple[Metric, Tensor, Tensor | None, float | None]:
        """Return metric, scores [steps], agreement [steps] or None, and the score of the ANN or None."""
        scores, ann = self.score.values(), self.ann.values()
        assert scores is not None
        assert self.score.metric is not None
        return self.score.metric, scores, self.same.values(), None if ann is None else float(ann)
