"""Calibration data, divided into what calibrates and what judges."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext.analysis.reference import answers, evaluating
from conversion_ext.analysis.scores import Score, main_output
from conversion_ext.data.batches import Forward, batches, call_inputs, target_of
from conversion_ext.data.distributed import gathered
from conversion_ext.data.inputs import device_of, streamed
from conversion_ext.data.sequences import Layout, layout_of, time_first
from conversion_ext.errors import CalibrationError, require
from conversion_ext.simulation.samples import Batch, Samples

__all__ = ["HELD_OUT", "Data"]

HELD_OUT = 4  # every fourth sample judges, the others calibrate


class Data:
    """The samples that calibrate, and those that judge, with what the ANN answers to them."""

    def __init__(self, ann: nn.Module, calibration: Any, forward: Forward | None, layout: Layout = None) -> None:
        data = batches(calibration)
        if layout is None and not _takes(ann, data, forward):
            layout = layout_of(data, ann, forward)
        self.forward, self.layout = forward, layout or False
        self.everything = [_read(batch, ann, forward, self.layout) for batch in data]
        parts = [_split(batch) for batch in self.everything]
        self.fitted = [fit.inputs for fit, _ in parts if len(fit)]
        self.judges = [judge for _, judge in parts if len(judge)]
        self.samples = sum(gathered(sum(map(len, self.judges))))
        require(
            self.samples >= 2,
            f"The calibration data holds {self.samples} samples beside those that calibrate; give at least 8 to choose "
            "from.",
            CalibrationError,
        )
        self.count = sum(len(fit) for fit, _ in parts)
        start, judged = time.monotonic(), max(1, sum(map(len, self.judges)))
        with evaluating(ann):
            self.said = [answers(ann, judge) for judge in self.judges]
        # What one pass of the ANN over the data that calibrates takes.
        self.unit = max(gathered((time.monotonic() - start) / judged * self.count))
        self.labelled = all(gathered(all(judge.target is not None for judge in self.judges)))

    @property
    def options(self) -> dict[str, Any]:
        """How ``convert`` is to read what calibrates."""
        return {"forward": Samples.call, "sequence": "time_first" if self.layout else False}

    def settle(self, metric: Any, sigmoid: bool) -> None:
        """Choose the metric, and what each sample that judges is compared with."""
        score = Score(metric, sigmoid)
        for judge, answer in zip(self.judges, self.said, strict=True):
            score.settle(answer, judge.target if self.labelled else None)
        chosen = [(agreed, reason) for agreed, reason in gathered((score.metric, score.reason)) if agreed is not None]
        self.metric, self.reason = chosen[0]
        if self.labelled:
            self.targets = [judge.target for judge in self.judges]
        else:
            self.targets = [self.metric.decision(main_output(answer)[0]) for answer in self.said]
        require(
            all(target is not None for target in self.targets),
            f"metric={self.metric.name} needs targets; pass (input, target) batches.",
            CalibrationError,
        )

    @property
    def measure(self) -> str:
        """What scores are called."""
        return self.metric.name if self.labelled else "agreement"


def _read(batch: Any, ann: nn.Module, forward: Forward | None, layout: Layout) -> Batch:
    """Return a batch as the network is given it; time comes first."""
    inputs = call_inputs(batch, forward)
    target = target_of(batch, inputs)  # which is told from the inputs by identity
    inputs, target = streamed((inputs, target), device_of(ann))
    if layout:
        dtype = next((p.dtype for p in ann.parameters() if p.is_floating_point()), None)
        inputs = time_first(inputs, 1 if layout == "batch_first" else 0, dtype)
    return Batch(inputs, target if isinstance(target, Tensor) else None, bool(layout))


def _takes(ann: nn.Module, data: Iterable[Any], forward: Forward | None) -> bool:
    """Return whether the network runs on batches as they are: on two samples of the first."""
    first = next(iter(data), None)
    if first is None:
        return True
    few = tuple(v[:2] if isinstance(v, Tensor) else v for v in _read(first, ann, forward, False).inputs)
    try:
        with evaluating(ann):
            answers(ann, Batch(few, None, False))
    except CalibrationError:  # it says how the network fails
        return False
    return True


def _split(whole: Batch) -> tuple[Batch, Batch]:
    """Return the samples that calibrate, and those that judge."""
    judge = torch.arange(len(whole)) % HELD_OUT == HELD_OUT - 1

    def part(mask: Tensor) -> Batch:
        samples = [v[:, mask.to(v.device)] if whole.sequence else v[mask.to(v.device)] for v in whole.inputs]
        target = None if whole.target is None else whole.target[mask.to(whole.target.device)]
        return Batch(tuple(samples), target, whole.sequence)

    return part(~judge), part(judge)
