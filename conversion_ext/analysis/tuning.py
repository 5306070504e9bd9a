"""Which recipe for this network and this T? Candidates compared on calibration data held out for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext.analysis.metrics import Metric
from conversion_ext.analysis.reference import answers, ends_in_sigmoid, evaluating
from conversion_ext.analysis.scores import Comparison
from conversion_ext.conversion.pipeline import convert
from conversion_ext.data.batches import Forward, batches, call_inputs, target_of
from conversion_ext.data.distributed import gathered, merged
from conversion_ext.data.sequences import Layout, sequence_layout, time_first
from conversion_ext.errors import CalibrationError, require
from conversion_ext.network.spiking_network import Root
from conversion_ext.neurons import IF, BurstIF, Neuron, SignedIF
from conversion_ext.normalizers import MeanSquaredError, Percentile
from conversion_ext.readouts.mean_output import MeanOutput
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.simulation.run import Runner
from conversion_ext.simulation.samples import Batch, Samples
from conversion_ext.tables import Report, Sheet, plain
from conversion_ext.tuners import BiasCorrection, InitialPotential, WeightCompensation
from conversion_ext.types import Family

__all__ = ["Candidate", "TuneResult", "tune"]

NEURONS: dict[Family, Neuron] = {
    Family.BINARY: IF(v_init=0.5),
    Family.SIGNED: SignedIF(v_init=0.5),
    Family.MULTI_LEVEL: BurstIF(v_init=0.5),
}
HELD_OUT = 4  # every fourth sample judges, the others calibrate


@dataclass(frozen=True)
class Candidate:
    """One row of the comparison: ``score`` is the metric, or agreement with the ANN, on the held-out samples."""

    recipe: Recipe
    score: float
    latency_steps: int
    seconds: float

    @property
    def name(self) -> str:
        """What the recipe chooses."""
        parts = (self.recipe.normalizer, *self.recipe.tuners)
        return ", ".join([*(type(part).__name__ for part in parts), repr(self.recipe.readout)])


@dataclass(frozen=True, repr=False)
class TuneResult(Report):
    """``snn``: the best recipe on all calibration data; ``candidates``: what was tried, the best first.

    ``measure``: the name of the metric, or "agreement"; ``samples``: how many held-out samples judged; ``metric``: what
    was measured, and ``reason``: why.
    """

    snn: Root
    recipe: Recipe
    candidates: tuple[Candidate, ...]
    measure: str
    samples: int
    metric: Metric
    reason: str = ""

    def sheet(self) -> Sheet:
        """Return one row per candidate, the best first."""
        rows = [(self.metric.shown(c.score), str(c.latency_steps), f"{c.seconds:.1f}", c.name) for c in self.candidates]
        title = f"{self.measure} on {self.samples} held-out samples"
        return Sheet((self.measure, "latency", "seconds", "recipe"), rows, title, left=0)

    def to_dict(self) -> dict[str, Any]:
        """Return all values as plain data."""
        candidates = [plain(c) | {"recipe": repr(c.recipe)} for c in self.candidates]
        return super().to_dict() | {
            "recipe": repr(self.recipe), "candidates": candidates, "metric": self.metric.name,
        }  # fmt: skip


def tune(
    ann: nn.Module,
    calibration: Any,
    T: int,
    *,
    family: str | Family = Family.BINARY,
    budget: float | None = None,
    backend: str | None = None,
    forward: Forward | None = None,
    metric: Any = None,
    sequence: Layout = None,
    progress: bool = True,
) -> TuneResult:
    """Return the best of the package's training-free recipes for ``ann`` at T steps, with the table it was chosen from.

    Thresholds (percentile, least squared error), corrections (of weights or not; of initial potentials, of biases or of
    neither) and the start of the readout (0, T/4, T/2) are compared on every fourth calibration sample, the others
    calibrate; then the best recipe is given all of them. With labels, (input, target) batches, ``metric`` decides (as
    for :func:`evaluate`; by default what the targets ask for), otherwise agreement with the ANN; of equals the simpler.
    Several processes give a part of the data each, and choose the same.

    Args:
        ann: the trained network.
        calibration: data as :func:`convert` reads it, at least 8 samples, with or without labels.
        T: number of time steps.
        family: "binary", "signed" or "multi-level".
        budget: seconds after which no new candidate is begun (at least one is tried).
        backend: as for :func:`convert`.
        forward: as for :func:`convert`.
        metric: as for :func:`evaluate`.
        sequence: as for :func:`convert`.
        progress: show progress bars.

    Raises ValueError for an unknown family or budget, CalibrationError where fewer than 8 samples are given.
    """
    require(isinstance(T, int) and T >= 1, f"T={T!r}: the number of time steps is an integer >= 1.")
    known = [str(each) for each in NEURONS]
    require(family in known, f"family={family!r}: choose one of {', '.join(known)}.")
    require(budget is None or budget > 0, f"budget={budget!r}: give seconds > 0, or None for no limit.")
    layout = sequence_layout(sequence) or False
    parts = [_split(batch, ann, forward, layout) for batch in batches(calibration)]
    fitted, judges = [fit.inputs for fit, _ in parts if len(fit)], [judge for _, judge in parts if len(judge)]
    samples = sum(gathered(sum(map(len, judges))))
    require(
        samples >= 2,
        f"The calibration data holds {samples} samples beside those that calibrate; give at least 8 to choose from.",
        CalibrationError,
    )
    labelled = all(gathered(all(judge.target is not None for judge in judges)))
    with evaluating(ann):
        said = [None if labelled else answers(ann, judge) for judge in judges]
    began, candidates = time.monotonic(), list[Candidate]()
    options: dict[str, Any] = {
        "T": T, "backend": backend, "forward": Samples.call, "progress": progress,
        "sequence": "time_first" if layout else False,
    }  # fmt: skip
    measured = Comparison(metric)
    for recipe in _recipes(NEURONS[Family(family)]):
        late = budget is not None and time.monotonic() - began > budget
        if candidates and any(gathered(late)):
            break
        start = time.monotonic()
        snn = convert(ann, fitted, recipe=recipe, **options)
        for first in sorted({0, T // 4, T // 2}):
            readout, steps = MeanOutput(start=first), 0
            measured, runner = Comparison(metric, ends_in_sigmoid(snn)), Runner(snn, T, (T,), {"readout": readout})
            for judge, answer in zip(judges, said, strict=True):
                run = runner(judge.inputs, judge.sequence)
                measured.add(run.outputs, judge.target if labelled else None, answer)
                steps = run.latency_steps
            measured = merged(measured)
            score, steps = float(measured.values()[1]), max(gathered(steps))
            seconds = time.monotonic() - start
            candidates.append(Candidate(replace(recipe, readout=readout), score, steps, seconds))
    found = measured.values()[0]
    sign = 1 if found.maximize else -1
    ranked = tuple(sorted(candidates, key=lambda candidate: -sign * candidate.score))  # the first of equals stays first
    everything = [_read(batch, ann, forward, layout).inputs for batch in batches(calibration)]
    snn = convert(ann, everything, recipe=ranked[0].recipe, **options)
    read = replace(snn.record.options, forward=forward, sequence=layout or None)  # how the user's data is read
    snn.record = replace(snn.record, options=read)
    measure = found.name if labelled else "agreement"
    return TuneResult(snn, ranked[0].recipe, ranked, measure, samples, found, measured.score.reason)


def _recipes(neuron: Neuron) -> Iterator[Recipe]:
    """Yield the candidates, the simplest first."""
    for normalizer in (Percentile(99.9), MeanSquaredError()):
        for weights in ((), (WeightCompensation(),)):
            for more in ((), (InitialPotential(),), (BiasCorrection(),)):
                yield Recipe(normalizer, neuron, tuners=(*weights, *more), family=neuron.family)


def _read(batch: Any, ann: nn.Module, forward: Forward | None, layout: Layout) -> Batch:
    """Return a batch as the network is given it; time comes first."""
    inputs = call_inputs(batch, forward)
    target = target_of(batch, inputs)
    if layout:
        dtype = next((p.dtype for p in ann.parameters() if p.is_floating_point()), None)
        inputs = time_first(inputs, 1 if layout == "batch_first" else 0, dtype)
    return Batch(inputs, target if isinstance(target, Tensor) else None, bool(layout))


def _split(batch: Any, ann: nn.Module, forward: Forward | None, layout: Layout) -> tuple[Batch, Batch]:
    """Return the samples that calibrate, and those that judge."""
    whole = _read(batch, ann, forward, layout)
    judge = torch.arange(len(whole)) % HELD_OUT == HELD_OUT - 1

    def part(mask: Tensor) -> Batch:
        samples = [v[:, mask.to(v.device)] if whole.sequence else v[mask.to(v.device)] for v in whole.inputs]
        target = None if whole.target is None else whole.target[mask.to(whole.target.device)]
        return Batch(tuple(samples), target, whole.sequence)

    return part(~judge), part(judge)
