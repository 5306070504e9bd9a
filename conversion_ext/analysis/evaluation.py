"""Accuracy of a converted network at every time step, beside its ANN."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from conversion_ext.data.batches import check_inputs, labelled
from conversion_ext.data.distributed import all_or_none, merged, rank
from conversion_ext.errors import CalibrationError, require
from conversion_ext.network.spiking_network import Root
from conversion_ext.simulation.engine import Engine
from conversion_ext.simulation.recorder import Recorder
from conversion_ext.simulation.run import run, times

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """Classification results over a data set: fractions in [0, 1], one per time step of ``at``.

    ``accuracy`` [len(at)]: correct; ``agreement`` [len(at)]: same class as the ANN, None without ``ann``;
    ``ann_accuracy``: None without ``ann``; ``firing_rate``: {site: mean spikes per neuron and step};
    ``total_steps``: neuron steps run per sample; ``latency_steps``: steps from input to the last decision, end to
    end; ``samples``: how many were seen.
    """

    at: tuple[int, ...]
    accuracy: Tensor
    agreement: Tensor | None
    ann_accuracy: float | None
    firing_rate: dict[str, float]
    total_steps: int
    latency_steps: int
    samples: int

    def latency(self, drop: float = 0.01) -> int | None:
        """Return the first step of ``at`` whose accuracy is at most ``drop`` below the ANN's, None if there is none."""
        if self.ann_accuracy is None:
            raise ValueError("latency() compares with the ANN: pass ann= to evaluate().")
        bound = self.ann_accuracy - drop - 1e-9  # exactly `drop` below counts, whatever the last bit says
        return next((t for t, accuracy in zip(self.at, self.accuracy, strict=True) if accuracy >= bound), None)


def evaluate(
    snn: Root,
    loader: Any,
    T: int,
    *,
    ann: nn.Module | None = None,
    at: Iterable[int] | None = None,
    time_chunk: int | None = None,
    generator: torch.Generator | None = None,
    block: int | None = None,
    dtype: str | torch.dtype | None = None,
    weights: str | None = None,
    compile: bool = False,  # noqa: A002
    progress: bool = True,
) -> Evaluation:
    """Return the accuracy of ``snn`` over a labelled ``loader`` after the steps ``at`` (default: 1 ... T).

    ``loader``: a re-iterable of (input [N, ...], target [N]) batches, or one such pair. The class is the largest
    decoded output. With ``ann`` the network it was made from is evaluated on the same samples. ``generator`` makes the
    noise of a random encoder, by default that of seed 0 (or the rank), for all batches in a row. ``time_chunk``,
    ``block``, ``dtype``, ``weights`` and ``compile``: see :func:`simulate`. Under torch.distributed each process
    evaluates its own part, and all get the whole result.
    """
    require(
        isinstance(snn, Root), f"snn is a {type(snn).__name__}; pass what conversion_ext.convert returned.", TypeError
    )
    engine = Engine(snn, dtype, weights, compile)
    engine.memories.reset()
    plan = engine.schedule(T, block)
    steps = times(at, T, plan.block)
    # One for all batches, and one of its own for every process, or each would see the same noise.
    noise = generator or torch.Generator().manual_seed(rank())
    was_training = ann is not None and ann.training
    counts = _Counts(len(steps))

    def count() -> _Counts:
        silent = not progress or rank() > 0
        for batch, (x, target) in enumerate(tqdm(labelled(loader), desc="evaluation", disable=silent)):
            inputs = x if isinstance(x, tuple) else (x,)
            check_inputs(inputs, snn, f"Batch {batch}")
            engine.memories.reset()
            with torch.no_grad(), Recorder(engine.sites) as recorder:
                outputs = run(engine, inputs, plan, steps, recorder, time_chunk=time_chunk, generator=noise)
                expected = None if ann is None else ann(*inputs).argmax(1).cpu()
            counts.add(_classes(outputs, target), target.cpu(), expected, recorder.rates(T))
        return counts

    try:
        if ann is not None:
            ann.eval()
        counts = merged(all_or_none(count))
    finally:
        if ann is not None:
            ann.train(was_training)
    samples = counts.samples
    require(samples > 0, "The loader holds no batch; pass at least one (input, target).", CalibrationError)
    return Evaluation(
        steps,
        counts.correct.double() / samples,
        None if ann is None else counts.same.double() / samples,
        None if ann is None else counts.ann_correct / samples,
        {key: counts.spikes[key] / samples for key in engine.sites if key in counts.spikes},
        plan.total_steps,
        plan.latency_steps,
        samples,
    )


class _Counts:
    """What has been counted over batches, of several processes too."""

    def __init__(self, steps: int) -> None:
        self.samples = self.ann_correct = 0
        self.correct, self.same = torch.zeros(2, steps, dtype=torch.long)
        self.spikes: dict[str, float] = {}

    def add(self, decided: Tensor, target: Tensor, expected: Tensor | None, rates: Mapping[str, Tensor]) -> None:
        """Count a batch: classes ``decided`` [steps, N], ``target`` [N], those of the ANN, {site: spikes per step}."""
        self.samples += len(target)
        self.correct += (decided == target).sum(1)
        if expected is not None:
            self.ann_correct += int((expected == target).sum())
            self.same += (decided == expected).sum(1)
        for key, rate in rates.items():
            self.spikes[key] = self.spikes.get(key, 0.0) + float(rate.double().flatten(1).mean(1).sum())

    def merge(self, other: _Counts) -> None:
        """Add the counts of another process."""
        self.samples += other.samples
        self.ann_correct += other.ann_correct
        self.correct += other.correct
        self.same += other.same
        for key, spikes in other.spikes.items():
            self.spikes[key] = self.spikes.get(key, 0.0) + spikes


def _classes(outputs: Any, target: Tensor) -> Tensor:
    """Return the class decided at each step, [steps, N]."""
    fits = isinstance(outputs, Tensor) and outputs.dim() == 3 and outputs.shape[1] == len(target)
    require(
        fits,
        "evaluate() needs one output [N, classes] per sample; for other outputs use simulate() and compare .outputs.",
    )
    return outputs.argmax(2).cpu()
