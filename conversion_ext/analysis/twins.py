"""The static limit of a spiking network: its ANN with activations rounded to what T steps can express."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext.analysis.metrics import Metric
from conversion_ext.analysis.reference import answers, ends_in_sigmoid, evaluating
from conversion_ext.analysis.scores import Comparison, stacked
from conversion_ext.data.distributed import all_or_none, gathered, merged
from conversion_ext.data.progress import bar, batches_in
from conversion_ext.data.sequences import Layout
from conversion_ext.errors import CalibrationError, require
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.network.state import reset
from conversion_ext.network.stepping import Stepping
from conversion_ext.simulation.samples import batches_of, require_network, require_steps, steps_to_try
from conversion_ext.tables import Report, Sheet
from conversion_ext.types import Steps

__all__ = ["Forecast", "Twin", "forecast", "twin"]


class Twin(nn.Module):
    """An ANN as accurate as the spiking network could be at T steps if every spike train were even."""

    def __init__(self, snn: SpikingNetwork, T: int) -> None:
        super().__init__()
        self.T = T
        self.snn = copy.deepcopy(snn)
        for site in self.snn.sites().values():
            site.spec.timed(T)
            site.stepping = Stepping()  # even trains need no correction

    def forward(self, *inputs: Any) -> Any:
        """Return the output [N, ...] in ANN units."""
        # One block after a reset: pools are plain pools then, and differential operators plain functions.
        reset(self.snn)
        return self.snn.run(inputs, Steps(1, constant=True, block=self.T))


def twin(snn: SpikingNetwork, T: int) -> Twin:
    """Return the ANN whose activations are the rates that ``snn``'s neurons reach in T steps of constant current.

    For soft-reset IF neurons an activation becomes ``threshold * clamp(floor(T z + v_init), 0, T) / T``, that is
    ceil(log2(T + 1)) bits; neurons that send up to k spikes at once reach T k. It has
    no time, hence no unevenness error: what it loses against the ANN is clipping and quantization, what the spiking
    network loses against it is unevenness. One forward forecasts the accuracy at T.
    """
    return Twin(require_network(snn), require_steps(T)).eval()


@dataclass(frozen=True, repr=False)
class Forecast(Report):
    """The score of the twin, one per number of steps in ``T``; ``reason``: why this metric was chosen.

    ``made_for``: the T that the network was corrected for, None where for none.
    """

    T: tuple[int, ...]
    score: Tensor
    samples: int
    metric: Metric
    reason: str = ""
    ann_score: float | None = None
    made_for: int | None = None

    @property
    def accuracy(self) -> Tensor:
        """The score [len(T)], where it is a share of right decisions."""
        require(self.metric.share, f"This forecast measures {self.metric.name}, which is no accuracy; read .score.")
        return self.score

    def sheet(self) -> Sheet:
        """Return the score for each T."""
        rows = [(str(t), self.metric.shown(float(v))) for t, v in zip(self.T, self.score, strict=True)]
        notes = [f"metric: {self.metric.name}{f' ({self.reason})' if self.reason else ''}"]
        notes += [] if self.ann_score is None else [f"ANN: {self.metric.shown(self.ann_score)}"]
        notes += [] if self.made_for is None else [f"all of the network made for T={self.made_for}"]
        return Sheet(("T", f"twin's {self.metric.name}"), rows, f"{self.samples} samples", notes, left=0)

    def to_dict(self) -> dict[str, Any]:
        """Return all values as plain data."""
        return super().to_dict() | {"metric": self.metric.name}


def forecast(
    snn: SpikingNetwork,
    data: Any,
    T: Iterable[int] | None = None,
    *,
    ann: nn.Module | None = None,
    metric: Any = None,
    sequence: Layout = None,
    progress: bool = True,
) -> Forecast:
    """Return the score that each number of steps can reach at best: which T do I need?

    Every T costs one forward of the twin; the spiking network itself stays below, by its unevenness error. Of a
    sequence of frames the twin is given the mean, which is what neurons that add up their input have received.
    The network stays as it is: one corrected for a T is not corrected anew for others, and ``tune`` does that.

    Args:
        snn: a converted network.
        data: a re-iterable of (input [N, ...], target) batches, or one such pair of tensors; without targets the
            decisions of ``ann`` are the target.
        T: numbers of time steps, by default 1, 2, 4, 8 and 16; spikes weighted in time have one that they are made for.
        ann: the network that ``snn`` was made from, to be measured beside it.
        metric: as for :func:`evaluate`.
        sequence: as for :func:`evaluate`.
        progress: show a progress bar.

    Returns:
        A :class:`Forecast`: a score for each number of steps.

    Raises:
        CalibrationError: for data that cannot be used, or targets that fit no metric.
    """
    steps = steps_to_try(_usual(require_network(snn)) if T is None else T)
    twins, scores = [twin(snn, t) for t in steps], Comparison(metric, ends_in_sigmoid(snn))

    def count() -> int:
        samples = 0
        batches = batches_of(snn, data, "loader", targets=True, sequence=sequence)
        for batch in bar(batches, "forecast", progress, batches_in(data)):
            if ann is None:
                batch.labelled()
            with torch.no_grad():
                outputs = stacked([network(*batch.mean()) for network in twins])
            scores.add(outputs, batch.target, None if ann is None else answers(ann, batch))
            samples += len(batch)
        return samples

    with nullcontext() if ann is None else evaluating(ann):
        samples = sum(gathered(all_or_none(count)))
    require(samples > 0, "The loader holds no batch; pass at least one (input, target).", CalibrationError)
    measured, score, _, ann_score = merged(scores).values()
    return Forecast(steps, score, samples, measured, scores.score.reason, ann_score, snn.record.T)


def _usual(snn: SpikingNetwork) -> tuple[int, ...]:
    """Return the numbers of steps of a forecast for which none are named."""
    weighted = next((site.spec.weights for site in snn.sites().values() if site.spec.weights), None)
    return (1, 2, 4, 8, 16) if weighted is None else (len(weighted),)
