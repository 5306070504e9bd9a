"""What keeps a spiking network from deciding as its ANN does: each cause is repaired, and the effect measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from conversion_ext.analysis.case import Case, Remedy
from conversion_ext.network.depths import depths
from conversion_ext.network.spiking_network import SpikingNetwork

__all__ = ["NOTABLE", "Cause", "causes_of"]

NOTABLE = 0.005  # a gain of less is no cause
DIFFERENT = 1.2  # a threshold that is off by this factor was calibrated on other data
SCALED = 4.0  # thresholds of the first sites that are this much too low, or half of it too high: another input scale


@dataclass(frozen=True)
class Cause:
    """One cause of the gap, and what helps against it, the best remedy first."""

    name: str
    sentence: str
    remedies: tuple[Remedy, ...]

    @property
    def gain(self) -> float:
        """The effect of its best remedy; infinite where no conversion can repair it."""
        return max((remedy.gain for remedy in self.remedies if remedy.gain is not None), default=math.inf)


def causes_of(case: Case, now: float) -> Iterator[Cause]:
    """Yield what keeps the agreement from being more than ``now``."""
    dead = [key for key, share in case.dead.items() if share == 1]
    if dead:
        sentence = f"No activation of {_listed(dead)} is positive on this data, in the ANN itself."
        yield Cause("dead layer", sentence, (Remedy("Train the ANN anew; no conversion can repair it."),))
    if now > 1 - NOTABLE:
        return
    base, ratios = now, _ratios(case.again, case.snn)
    if any(not 1 / DIFFERENT < ratio < DIFFERENT for ratio in ratios.values()):
        base = max(now, case.score(case.again))
        if base - now > NOTABLE:
            yield _mismatch(ratios, depths(case.snn.body), base - now)
    recipe = case.snn.conversion.recipe
    if recipe.max_pool != "count":
        pooled = case.score(case.converted(max_pool="count"))
        if pooled - base > NOTABLE:
            sentence = f"max_pool={recipe.max_pool!r} does not pass on the maximum of the firing rates."
            yield Cause("max-pooling", sentence, (Remedy('Convert with max_pool="count"', pooled - base),))
            base = pooled
    wide = case.trials[0].over(base)
    if (wide.gain or 0.0) > NOTABLE and max(_ratios(case.wide, case.again, 0.9).values(), default=1.0) > DIFFERENT:
        sentence = f"{type(recipe.normalizer).__name__} sets thresholds below many activations, which are cut off."
        yield Cause("clipping", sentence, (wide,))
    yield from _time(case, now, base)


def _time(case: Case, now: float, base: float) -> Iterator[Cause]:
    """Yield what more steps, other neurons or evener spikes would change, beyond ``base`` of repaired networks."""
    _, *trials = case.trials
    steps = [] if case.sequences else [trials.pop(0).over(now)]
    remedies = [remedy for remedy in (*steps, *(trial.over(base) for trial in trials)) if _helps(remedy)]
    remedies.sort(key=lambda remedy: math.inf if remedy.gain is None else -remedy.gain)
    if any(_helps(remedy) for remedy in steps):
        sentence = f"In T={case.T} steps neurons round activations coarsely, and their spikes are uneven."
        yield Cause("too few steps", sentence, tuple(remedies))
    even = case.static(case.converted(max_pool="count")) - base
    if even > NOTABLE:
        sentence = "Spikes arrive earlier or later than a constant current would send them."
        yield Cause("uneven spikes", sentence, (Remedy("Simulate with block=T", even, "at a larger latency"),))


def _helps(remedy: Remedy) -> bool:
    return remedy.gain is None or remedy.gain > NOTABLE


def _ratios(better: SpikingNetwork, present: SpikingNetwork, quantile: float = 0.5) -> dict[str, float]:
    """Return {site: ratio of the thresholds of two conversions of one network}, a quantile over channels."""
    wanted = better.conversion.thresholds
    ratios = {key: (wanted[key] / value).float() for key, value in present.conversion.thresholds.items()}
    return {key: float(ratio.quantile(quantile)) for key, ratio in ratios.items()}


def _mismatch(ratios: Mapping[str, float], places: Mapping[str, int], gain: float) -> Cause:
    """Return how the calibration data differs from this data: in its scale, or in the range of some layer."""
    first = sorted(ratio for key, ratio in ratios.items() if places[key] == 1)
    scale = first[len(first) // 2] if first else 1.0
    if scale >= SCALED or scale <= 2 / SCALED:
        way = f"{scale:.3g} times larger" if scale > 1 else f"{1 / scale:.3g} times smaller"
        sentence = f"The inputs are about {way} than those of the calibration."
        remedy = "Scale inputs as in training, and calibrate on inputs of the same scale"
        return Cause("input scale", sentence, (Remedy(remedy, gain),))
    key = max(ratios, key=lambda key: abs(math.log(ratios[key])))
    sentence = (
        f"The calibration data had another range: thresholds of {key} should be {ratios[key]:.2g} times as large."
    )
    return Cause("uncalibrated range", sentence, (Remedy("Calibrate on samples like these", gain),))


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
