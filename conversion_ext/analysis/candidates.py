"""What ``tune`` may try: recipes and numbers of steps, and what each of them will cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from conversion_ext.neurons import IF, BurstIF, Neuron, SignedIF, WeightedIF
from conversion_ext.normalizers import MeanSquaredError, Normalizer, Percentile
from conversion_ext.recipes.default import corrections
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.tuners import (
    BiasCorrection,
    BlockReconstruction,
    DecisionTable,
    InitialPotential,
    OutputWeights,
    Tuner,
    WeightCompensation,
)
from conversion_ext.types import Family

__all__ = ["FAMILIES", "Limits", "Trial", "passes_of", "trials"]

FAMILIES = (Family.BINARY, Family.WEIGHTED, Family.SIGNED, Family.MULTI_LEVEL)
LONGEST = 32  # steps, where only the latency is limited
MOST_WEIGHTS = 6  # of spikes weighted in time: more would be finer than anything that they are compared with
COPIES = (2, 3, 4)
BEST = 2  # of the corrections
BLOCKS = BlockReconstruction()


@dataclass(frozen=True)
class Limits:
    """What a network may cost: steps end to end, neurons, spikes per input; None for no limit."""

    latency: int | None = None
    neurons: float | None = None
    spikes: float | None = None

    def allow(self, latency: float, neurons: float, spikes: float) -> bool:
        """Return whether a network of these costs is within the limits."""
        pairs = ((latency, self.latency), (neurons, self.neurons), (spikes, self.spikes))
        return all(limit is None or value <= limit for value, limit in pairs)


@dataclass(frozen=True)
class Trial:
    """A recipe and T; ``copies_wanted``: afterwards neurons are to be spent where it errs most."""

    recipe: Recipe
    T: int
    copies_wanted: bool = False


def trials(families: Sequence[Family], T: int | None, limits: Limits, depth: int) -> Iterator[Trial]:
    """Yield what may be tried, the most promising first; ``depth`` sites lie on the longest chain.

    Where T is not given, each kind gets the most steps that the latency allows, and half of them. Neurons that look
    ahead are tried with the best corrections alone.
    """
    for index, (normalizer, tuners) in enumerate(_corrections()):
        for neuron in _neurons(families, limits):
            for steps in _steps(neuron, T, limits, depth) if index < BEST or not neuron.ahead else ():
                yield from _of(neuron, normalizer, tuners, steps, limits)


def _corrections() -> Iterator[tuple[Normalizer, tuple[Tuner, ...]]]:
    """Yield thresholds and corrections, the best of most networks first."""
    weights, start = WeightCompensation(), InitialPotential()
    yield MeanSquaredError(), corrections()
    yield MeanSquaredError(), corrections(BLOCKS)
    for normalizer in (MeanSquaredError(), Percentile(99.9)):
        for first in ((weights,), ()):
            for more in ((), (start,), (BiasCorrection(),)):
                if (normalizer, first, more) != (MeanSquaredError(), (weights,), (start,)):
                    yield normalizer, (*first, *more)


def _neurons(families: Sequence[Family], limits: Limits) -> Iterator[Neuron]:
    for family in families:
        if family is Family.BINARY:
            yield IF(v_init=0.5)
            yield IF(v_init=0.5, lookahead=1)
            if limits.neurons is not None:  # as with copies: more of them only where their number is spoken of
                yield SignedIF(v_init=0.5, pairs=True)
        elif family is Family.WEIGHTED:
            yield WeightedIF(lookahead=1)
            yield WeightedIF(lookahead=2)
        elif family is Family.SIGNED:
            yield SignedIF(v_init=0.5)
        else:
            yield BurstIF(v_init=0.5)


def _steps(neuron: Neuron, T: int | None, limits: Limits, depth: int) -> list[int]:
    """Return the numbers of steps to try with a neuron."""
    lag = neuron.ahead * (depth - 1)
    room = LONGEST if limits.latency is None else limits.latency - lag
    if T is not None:
        return [T] if room >= T else []
    most = min(room, MOST_WEIGHTS if isinstance(neuron, WeightedIF) else LONGEST)
    if limits.latency is None:  # spikes are limited, and grow with T
        return [steps for steps in (2, 4, 8, 16, 32) if steps <= most]
    return sorted({most, most // 2} - {0}, reverse=True) if most >= 1 else []


def _of(neuron: Neuron, normalizer: Normalizer, tuners: tuple[Tuner, ...], T: int, limits: Limits) -> Iterator[Trial]:
    best = isinstance(normalizer, MeanSquaredError) and tuners == corrections()
    spread = type(neuron) is IF and best and limits.neurons is not None
    if isinstance(neuron, WeightedIF):
        more = (tuner for tuner in tuners[1:] if not isinstance(tuner, OutputWeights))  # its steps are parts of a sum
        tuners = (*tuners[:1], DecisionTable(), *more)
    recipe = Recipe(normalizer, neuron, tuners=tuners, family=neuron.family)
    yield Trial(recipe, T, copies_wanted=spread and neuron.ahead == 0)
    for copies in COPIES if spread else ():
        yield Trial(replace(recipe, copies=copies), T)


def passes_of(trial: Trial, samples: int) -> float:
    """Return the passes of the ANN over ``samples`` that a trial costs, converted and judged, by a rule of thumb."""
    recipe, T = trial.recipe, trial.T
    total = 2.0 + T / 3 + isinstance(recipe.normalizer, MeanSquaredError)
    for tuner in recipe.tuners:
        if isinstance(tuner, BlockReconstruction):
            total += 5.0 * T * tuner.steps * tuner.batch / max(samples, 1)
        else:
            total += (10.0 if isinstance(tuner, WeightCompensation) else 2.0) + T
    return total * (1.0 if recipe.copies == 1 else 1.5)
