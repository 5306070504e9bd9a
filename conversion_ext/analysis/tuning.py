"""Which recipe for this network and this T? Candidates compared on calibration data held out for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext.conversion.pipeline import convert
from conversion_ext.data.batches import Forward, batches, call_inputs
from conversion_ext.data.distributed import gathered
from conversion_ext.errors import CalibrationError, require
from conversion_ext.network.spiking_network import Root
from conversion_ext.neurons import IF, BurstIF, Neuron, SignedIF
from conversion_ext.normalizers import MeanSquaredError, Percentile
from conversion_ext.readouts.mean_output import MeanOutput
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.simulation.simulation import simulate
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
    """One row of the comparison: ``score`` is accuracy, or agreement with the ANN, on the held-out samples."""

    recipe: Recipe
    score: float
    latency_steps: int
    seconds: float

    def __str__(self) -> str:
        parts = (self.recipe.normalizer, *self.recipe.tuners, self.recipe.readout)
        names = ", ".join(type(part).__name__ for part in parts[:-1])
        return f"{100 * self.score:6.2f} %  {self.latency_steps:4d} steps  {self.seconds:6.1f} s  {names}, {parts[-1]}"


@dataclass(frozen=True)
class TuneResult:
    """``snn``: the best recipe on all calibration data; ``candidates``: what was tried, the best first.

    ``measure``: "accuracy" or "agreement"; ``samples``: how many held-out samples judged.
    """

    snn: Root
    recipe: Recipe
    candidates: tuple[Candidate, ...]
    measure: str
    samples: int

    def __str__(self) -> str:
        return "\n".join([f"{self.measure} on {self.samples} held-out samples", *map(str, self.candidates)])


def tune(
    ann: nn.Module,
    calibration: Any,
    T: int,
    *,
    family: str | Family = Family.BINARY,
    budget: float | None = None,
    backend: str | None = None,
    forward: Forward | None = None,
    progress: bool = True,
) -> TuneResult:
    """Return the best of the package's training-free recipes for ``ann`` at T steps, with the table it was chosen from.

    Thresholds (percentile, least squared error), corrections (of weights or not; of initial potentials, of biases or of
    neither) and the start of the readout (0, T/4, T/2) are compared on every fourth calibration sample, the others
    calibrate; then the best recipe is given all of them. With labels, (input, target) batches, accuracy decides,
    otherwise agreement with the ANN; of equals the simpler. ``family``: "binary", "signed" or "multi-level".
    ``budget``: seconds after which no new candidate is begun (at least one is tried). Several processes give a part of
    the data each, and choose the same.

    Raises ValueError for an unknown family or budget, CalibrationError where fewer than 8 samples are given.
    """
    require(isinstance(T, int) and T >= 1, f"T={T!r}: the number of time steps is an integer >= 1.")
    known = [str(each) for each in NEURONS]
    require(family in known, f"family={family!r}: choose one of {', '.join(known)}.")
    require(budget is None or budget > 0, f"budget={budget!r}: give seconds > 0, or None for no limit.")
    parts = [_split(batch, forward) for batch in batches(calibration)]
    fitted, judges = [fit for fit, _ in parts if len(fit[0])], [judge for _, judge in parts if len(judge[0][0])]
    samples = sum(gathered(sum(len(inputs[0]) for inputs, _ in judges)))
    require(
        samples >= 2,
        f"The calibration data holds {samples} samples beside those that calibrate; give at least 8 to choose from.",
        CalibrationError,
    )
    labelled = all(gathered(all(target is not None for _, target in judges)))
    wanted = [target if labelled else _decided(ann, inputs) for inputs, target in judges]
    began, candidates = time.monotonic(), list[Candidate]()
    options: dict[str, Any] = {"T": T, "backend": backend, "forward": _call, "progress": progress}
    for recipe in _recipes(NEURONS[Family(family)]):
        late = budget is not None and time.monotonic() - began > budget
        if candidates and any(gathered(late)):
            break
        start = time.monotonic()
        snn = convert(ann, fitted, recipe=recipe, **options)
        for first in sorted({0, T // 4, T // 2}):
            readout, right, steps = MeanOutput(start=first), 0, 0
            for (inputs, _), target in zip(judges, wanted, strict=True):
                run = simulate(snn, inputs, T, readout=readout, at=(T,))
                right += int((run.output.argmax(1) == target).sum())
                steps = run.latency_steps
            score, steps = sum(gathered(right)) / samples, max(gathered(steps))
            seconds = time.monotonic() - start
            candidates.append(Candidate(replace(recipe, readout=readout), score, steps, seconds))
    best = max(candidates, key=lambda candidate: candidate.score)  # the first of equals
    everything = [call_inputs(batch, forward) for batch in batches(calibration)]
    snn = convert(ann, everything, recipe=best.recipe, **options)
    ranked = tuple(sorted(candidates, key=lambda candidate: -candidate.score))
    return TuneResult(snn, best.recipe, ranked, "accuracy" if labelled else "agreement", samples)


def _recipes(neuron: Neuron) -> Iterator[Recipe]:
    """Yield the candidates, the simplest first."""
    for normalizer in (Percentile(99.9), MeanSquaredError()):
        for weights in ((), (WeightCompensation(),)):
            for more in ((), (InitialPotential(),), (BiasCorrection(),)):
                yield Recipe(normalizer, neuron, tuners=(*weights, *more), family=neuron.family)


def _split(batch: Any, forward: Forward | None) -> tuple[tuple[Any, ...], tuple[tuple[Any, ...], Tensor | None]]:
    """Return the inputs of the samples that calibrate, and inputs and targets of those that judge."""
    inputs = call_inputs(batch, forward)
    target = batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None
    target = target if isinstance(target, Tensor) and target.dim() == 1 and not target.is_floating_point() else None
    judge = torch.arange(len(inputs[0])) % HELD_OUT == HELD_OUT - 1
    fit = tuple(value[~judge.to(value.device)] for value in inputs)
    held = tuple(value[judge.to(value.device)] for value in inputs)
    return fit, (held, None if target is None else target[judge.to(target.device)])


def _call(model: Any, inputs: Any) -> Any:
    return model(*inputs)


@torch.no_grad()
def _decided(ann: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
    """Return the classes that the ANN decides on; its mode stays as it was."""
    training = ann.training
    try:
        return ann.eval()(*inputs).argmax(1)
    finally:
        ann.train(training)
