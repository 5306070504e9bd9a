"""A measure of a converted network at every time step, beside its ANN."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from conversion_ext.analysis.metrics import Metric
from conversion_ext.analysis.reference import answers, ends_in_sigmoid, evaluating
from conversion_ext.analysis.scores import Comparison
from conversion_ext.data.distributed import all_or_none, merged, rank
from conversion_ext.data.progress import bar, batches_in
from conversion_ext.data.sequences import Layout
from conversion_ext.errors import CalibrationError, require
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.simulation.options import RunOptions
from conversion_ext.simulation.run import Runner, Simulation
from conversion_ext.simulation.samples import Batch, batches_of, require_network
from conversion_ext.tables import Report, Sheet, spread

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, repr=False)
class Evaluation(Report):
    """A measure over a data set, one value per time step of ``at``.

    ``score`` [len(at)]: the ``metric``, by default accuracy in [0, 1]; ``agreement`` [len(at)]: the same metric against
    the ANN's own decisions (against its outputs for regression), None without ``ann`` or for a metric that is a
    function; ``ann_score``: None without ``ann``; ``firing_rate``: {site: mean spikes per neuron and step};
    ``total_steps``: neuron steps run per sample; ``latency_steps``: steps from input to the last decision, end to end;
    ``samples``: how many were seen; ``mean_steps``: mean steps per sample where samples may exit early; ``reason``: why
    this metric was chosen.
    """

    at: tuple[int, ...]
    score: Tensor
    agreement: Tensor | None
    ann_score: float | None
    firing_rate: dict[str, float]
    total_steps: int
    latency_steps: int
    samples: int
    metric: Metric
    reason: str = ""
    mean_steps: float | None = None

    @property
    def accuracy(self) -> Tensor:
        """The score [len(at)], where it is a share of right decisions."""
        return self._accuracy(self.score)

    @property
    def ann_accuracy(self) -> float | None:
        """The score of the ANN, where it is a share of right decisions."""
        return self._accuracy(self.ann_score)

    def _accuracy(self, value: Any) -> Any:
        require(
            self.metric.share,
            f"This evaluation measures {self.metric.name}, which is no accuracy; read .score and .ann_score.",
        )
        return value

    def latency(self, drop: float = 0.01) -> int | None:
        """Return the first step of ``at`` whose score is at most ``drop`` worse than the ANN's, or None."""
        if self.ann_score is None:
            raise ValueError("latency() compares with the ANN: pass ann= to evaluate().")
        sign = 1 if self.metric.maximize else -1
        bound = sign * self.ann_score - drop - 1e-9  # exactly `drop` below counts, whatever the last bit says
        return next((t for t, score in zip(self.at, self.score, strict=True) if sign * score >= bound), None)

    def sheet(self) -> Sheet:
        """Return the score at a few steps."""
        show = self.metric.shown
        header = ["T", self.metric.name] + (["agreement"] if self.agreement is not None else [])
        rows = []
        for i in spread(len(self.at)):
            agreement = [] if self.agreement is None else [show(float(self.agreement[i]))]
            rows.append([str(self.at[i]), show(float(self.score[i])), *agreement])
        rates = list(self.firing_rate.values())
        notes = [f"metric: {self.metric.name}{f' ({self.reason})' if self.reason else ''}"]
        notes += [] if self.ann_score is None else [f"ANN: {show(self.ann_score)}"]
        notes += [f"{sum(rates) / len(rates):.4f} spikes per neuron and step"] if rates else []
        notes += [] if self.mean_steps is None else [f"{self.mean_steps:.2f} steps per sample with early exit"]
        return Sheet(header, rows, f"{self.samples} samples, {self.latency_steps} steps of latency", notes, left=0)

    def to_dict(self) -> dict[str, Any]:
        """Return all values as plain data."""
        return super().to_dict() | {"metric": self.metric.name}


def evaluate(
    snn: SpikingNetwork,
    data: Any,
    T: int | None = None,
    *,
    ann: nn.Module | None = None,
    at: Iterable[int] | None = None,
    metric: Any = None,
    sequence: Layout = None,
    progress: bool = True,
    **options: Unpack[RunOptions],
) -> Evaluation:
    """Return how good ``snn`` is on labelled ``data`` after the steps ``at``, beside its ANN.

    Under torch.distributed each process evaluates its own part, and all get the whole result.

    Args:
        snn: a converted network.
        data: a re-iterable of (input [N, ...], target) batches, or one such pair of tensors. Without targets the
            decisions of ``ann`` are the target.
        T: the number of time steps; for sequences by default their length.
        ann: the network that ``snn`` was made from; it is evaluated on the same samples and not changed.
        at: the steps whose output is measured; by default all up to T that the readout has read something at.
        metric: a name (accuracy, top5, binary_accuracy, miou, rmse, r2, correlation), a value of
            ``cx.analysis.metrics``, or a function ``(output, target) -> number``, larger being better. By default what
            the targets ask for: the result names the choice and its reason.
        sequence: inputs are frames, ``True`` for [T, N, ...], "batch_first" for [N, T, ...]; by default as in
            ``convert``, or seen from the shape.
        progress: show a progress bar.
        options: those of :func:`simulate`: ``readout``, ``exit``, ``time_chunk``, ``block``, ``dtype``, ``weights``,
            ``compile``, ``generator`` (for all batches in a row; by default that of seed 0, or of the rank).

    Returns:
        An :class:`Evaluation`: scores [len(at)], firing rates, steps and latency; it prints as a table.

    Raises:
        CalibrationError: for data that cannot be used, or targets that fit no metric.
        ValueError: for arguments that do not fit.
    """
    require_network(snn)
    # One for all batches, and one of its own for every process, or each would see the same noise.
    if options.get("generator") is None:
        options["generator"] = torch.Generator().manual_seed(rank())
    readout = options.get("readout") or snn.conversion.recipe.readout
    runner, tally = Runner(snn, T, at, options), _Tally(metric, ends_in_sigmoid(snn), readout.first_step)
    early = [t for t in runner.at or () if 0 < t < readout.first_step]
    require(
        not early or len(early) == len(runner.at or ()),  # then ``simulate`` says so
        f"at={early}: readout={readout!r} reads from step {readout.first_step} on; measure later steps.",
    )

    def count() -> _Tally:
        batches = batches_of(snn, data, "loader", targets=True, sequence=sequence)
        for batch in bar(batches, "evaluation", progress, batches_in(data)):
            if ann is None:
                batch.labelled()
            tally.add(batch, runner(batch.inputs, batch.sequence), None if ann is None else answers(ann, batch))
        return tally

    with nullcontext() if ann is None else evaluating(ann):
        tally = merged(all_or_none(count))
    require(tally.samples > 0, "The loader holds no batch; pass at least one (input, target).", CalibrationError)
    return tally.result()


class _Tally:
    """What has been counted over batches, of several processes too."""

    def __init__(self, metric: Any, sigmoid: bool, first_step: int) -> None:
        self.scores = Comparison(metric, sigmoid)
        self.first_step = first_step  # before it the output is 0, and no decision
        self.run: Simulation | None = None
        self.samples = self.steps = 0
        self.spikes: dict[str, float] = {}

    def add(self, batch: Batch, run: Simulation, said: Any) -> None:
        """Count a batch: its run, and what the ANN answers."""
        self.scores.add(run.outputs, batch.target, said)
        self.run = run
        self.samples += len(batch)
        self.steps += 0 if run.steps is None else int(run.steps.sum())
        for key, rate in run.firing_rate.items():
            self.spikes[key] = self.spikes.get(key, 0.0) + float(rate.double().flatten(1).mean(1).sum())

    def __getstate__(self) -> dict[str, Any]:
        """Of a run other processes need its numbers alone."""
        run = None if self.run is None else replace(self.run, outputs=None, firing_rate={}, spikes={}, steps=None)
        return {**self.__dict__, "run": run}

    def merge(self, other: _Tally) -> None:
        """Add the counts of another process."""
        self.scores.merge(other.scores)
        self.run = self.run or other.run
        self.samples += other.samples
        self.steps += other.steps
        for key, spikes in other.spikes.items():
            self.spikes[key] = self.spikes.get(key, 0.0) + spikes

    def result(self) -> Evaluation:
        """Return the measures of all samples."""
        run, (metric, scores, agreement, ann) = self.run, self.scores.values()
        assert run is not None
        kept = [i for i, t in enumerate(run.at) if t >= self.first_step]
        return Evaluation(
            tuple(run.at[i] for i in kept),
            scores[kept],
            None if agreement is None else agreement[kept],
            ann,
            {key: spikes / self.samples for key, spikes in self.spikes.items()},
            run.total_steps,
            run.latency_steps,
            self.samples,
            metric,
            self.scores.score.reason,
            self.steps / self.samples if self.steps else None,
        )
