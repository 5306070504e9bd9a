"""What keeps a spiking network from deciding as its ANN does: each cause is repaired, and the effect measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext import recipes
from conversion_ext.analysis.reference import answers
from conversion_ext.analysis.scores import main_output
from conversion_ext.analysis.twins import twin
from conversion_ext.conversion.observation import calibrate
from conversion_ext.conversion.pipeline import convert
from conversion_ext.errors import CalibrationError, require
from conversion_ext.network.depths import depths
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.normalizers import Maximum, Percentile
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.simulation.samples import Batch, batches_of
from conversion_ext.simulation.simulation import Simulation, simulate
from conversion_ext.types import PerChannel

__all__ = ["NOTABLE", "Case", "Cause", "Remedy", "Run", "causes_of"]

MORE = 4  # times as many steps, to see what time alone would give
NOTABLE = 0.005  # a gain of less is no cause
DIFFERENT = 1.2  # a threshold that is off by this factor was calibrated on other data
SCALED = 4.0  # thresholds of the first sites that are this much too low, or half of it too high: another input scale
TUNED = ("default", "default-lookahead", "default-copies", "default-signed", "default-multilevel")


@dataclass(frozen=True)
class Remedy:
    """A change, and by how much it raised the agreement with the ANN on held-out samples (None: not measured)."""

    sentence: str
    gain: float | None = None

    def __str__(self) -> str:
        return self.sentence if self.gain is None else f"{self.sentence} ({100 * self.gain:+.1f} points)"


@dataclass(frozen=True)
class Cause:
    """One cause of the gap, and what helps against it, the best remedy first."""

    name: str
    sentence: str
    remedies: tuple[Remedy, ...]

    @property
    def gain(self) -> float:
        """The effect of its best remedy; infinite where no conversion can mend it."""
        return max((remedy.gain for remedy in self.remedies if remedy.gain is not None), default=math.inf)


class Case:
    """The networks and the data of one diagnosis: ``fit`` calibrates repairs, ``judge`` measures them."""

    def __init__(self, snn: SpikingNetwork, ann: nn.Module, data: Any, T: int) -> None:
        self.snn, self.ann, self.T = snn, ann, T
        given = snn.record.options
        self.options: dict[str, Any] = {
            "forward": _call, "progress": False,
            "skip": given.skip, "leaf": given.leaf, "graded": given.graded, "relay": given.relay,
        }  # fmt: skip
        batches = list(batches_of(snn, data))
        require(not any(b.sequence for b in batches), "diagnose() reads inputs without a time axis.", CalibrationError)
        self.fit = [_half(batch, 0) for batch in batches]
        self.judge = [_half(batch, 1) for batch in batches]
        self.samples = sum(len(batch) for batch in self.judge)
        require(self.samples >= 4, "The data holds fewer than 8 samples; give at least 8.", CalibrationError)
        self.expected = [main_output(answers(ann, batch))[0] for batch in self.judge]
        stats = calibrate(ann, self.fit, recipe=Recipe(Maximum(granularity=PerChannel())), **self.options).stats
        self.dead = {key: float((seen.maximum <= 0).double().mean()) for key, seen in stats.items()}

    def run(self, snn: SpikingNetwork, T: int, at: tuple[int, ...] | None = None) -> Run:
        """Return what a simulation of the samples that judge shows after the steps ``at``."""
        return Run(self, [simulate(snn, batch.inputs, T, at=at) for batch in self.judge])

    def score(self, snn: SpikingNetwork, T: int | None = None) -> float:
        """Return the agreement of a network after T steps."""
        T = T or self.T
        return self.run(snn, T, (T,)).agreement[-1]

    def static(self, snn: SpikingNetwork) -> float:
        """Return the agreement of the twin of a network."""
        network: Callable[..., Tensor] = twin(snn, self.T)
        with torch.no_grad():
            return self.agreement([main_output(network(*batch.inputs))[0] for batch in self.judge])

    def converted(self, **changes: Any) -> SpikingNetwork:
        """Return the network converted anew on data like this, with changes to its recipe."""
        return self.by(replace(self.snn.conversion.recipe, **changes), self.snn.conversion.T or self.T)

    def by(self, recipe: str | Recipe, T: int) -> SpikingNetwork:
        """Return the ANN converted by a recipe on data like this."""
        return convert(self.ann, self.fit, recipe=recipe, T=T, backend="reference", **self.options)

    def agreement(self, outputs: Sequence[Tensor]) -> float:
        """Return the share of equal decisions, or 1 minus the relative error."""
        pairs = list(zip(outputs, self.expected, strict=True))
        if self.classes:
            return sum(int((o.argmax(1) == e.argmax(1)).sum()) for o, e in pairs) / self.samples
        error = sum(float((o - e).double().square().sum()) for o, e in pairs)
        size = sum(float(e.double().square().sum()) for _, e in pairs)
        return max(0.0, 1 - math.sqrt(error / (size or 1.0)))

    def accuracy(self, outputs: Sequence[Tensor]) -> float | None:
        """Return the share of right decisions, None without labels."""
        targets = [batch.target for batch in self.judge]
        if not self.classes or not all(_is_labels(target) for target in targets):
            return None
        return sum(int((o.argmax(1) == t).sum()) for o, t in zip(outputs, targets, strict=True)) / self.samples

    @property
    def classes(self) -> bool:
        """Whether outputs are scores of classes [N, classes]."""
        return self.expected[0].dim() == 2 and self.expected[0].shape[1] > 1


class Run:
    """What a simulation of all samples showed."""

    def __init__(self, case: Case, runs: Sequence[Simulation]) -> None:
        self.agreement = tuple(
            case.agreement([main_output(run.outputs)[0][i] for run in runs]) for i in range(len(runs[0].at))
        )
        self.accuracy = case.accuracy([main_output(run.output)[0] for run in runs])
        self.latency_steps = runs[0].latency_steps
        self.rates = {key: torch.cat([run.firing_rate[key] for run in runs]) for key in runs[0].firing_rate}
        self.spikes = float(torch.cat([run.spikes_per_sample for run in runs]).mean())
        self.neurons = sum(rate[0].numel() for rate in self.rates.values())


def causes_of(case: Case, now: float) -> Iterator[Cause]:
    """Yield what keeps the agreement from being more than ``now``."""
    dead = [key for key, share in case.dead.items() if share == 1]
    if dead:
        sentence = f"No activation of {_listed(dead)} is positive on this data, in the ANN itself."
        yield Cause("dead layer", sentence, (Remedy("Train the ANN anew; no conversion can mend it."),))
    if now > 1 - NOTABLE:
        return
    again = case.converted()
    base, ratios = now, _ratios(again, case.snn)
    if any(not 1 / DIFFERENT < ratio < DIFFERENT for ratio in ratios.values()):
        base = max(now, case.score(again))
        if base - now > NOTABLE:
            yield _mismatch(ratios, depths(case.snn.body), base - now)
    recipe = case.snn.conversion.recipe
    if recipe.max_pool != "count":
        pooled = case.score(case.converted(max_pool="count"))
        if pooled - base > NOTABLE:
            sentence = f"max_pool={recipe.max_pool!r} does not pass on the maximum of the firing rates."
            yield Cause("max-pooling", sentence, (Remedy('Convert with max_pool="count".', pooled - base),))
            base = pooled
    wide = case.converted(normalizer=Percentile(99.9, granularity=recipe.normalizer.granularity), tuners=())
    gain = case.score(wide) - base
    if gain > NOTABLE and max(_ratios(wide, again, 0.9).values()) > DIFFERENT:
        sentence = f"{type(recipe.normalizer).__name__} sets thresholds below many activations, which are cut off."
        remedies = (Remedy("Convert with Percentile(99.9) or MeanSquaredError().", gain),)
        yield Cause("clipping", sentence, remedies)
    yield from _time(case, now, base)


def _time(case: Case, now: float, base: float) -> Iterator[Cause]:
    """Yield what more steps, other neurons or evener spikes would change, beyond ``base`` of repaired networks."""
    steps = Remedy(f"Simulate T={MORE * case.T} steps.", case.score(case.snn, MORE * case.T) - now)
    family, T = case.snn.conversion.recipe.family, case.T
    names = [name for name in TUNED if name in recipes.names() and recipes.get(name).family == family]
    names = [name for name in names if recipes.get(name) != case.snn.conversion.recipe]
    tuned = [Remedy(f'Convert with T={T}, recipe="{name}".', case.score(case.by(name, T)) - base) for name in names]
    even = case.static(case.converted(max_pool="count")) - base
    remedies = sorted((steps, *tuned), key=lambda remedy: -(remedy.gain or 0.0))
    if (steps.gain or 0.0) > NOTABLE:
        sentence = f"In T={T} steps neurons round activations coarsely, and their spikes are uneven."
        yield Cause("too few steps", sentence, tuple(r for r in remedies if (r.gain or 0.0) > NOTABLE))
    if even > NOTABLE:
        sentence = "Spikes arrive earlier or later than a constant current would send them."
        yield Cause("uneven spikes", sentence, (Remedy("Simulate with block=T, at a larger latency.", even),))


def _ratios(better: SpikingNetwork, present: SpikingNetwork, quantile: float = 0.5) -> dict[str, float]:
    """Return {site: ratio of the thresholds of two conversions of one network}, a quantile over channels."""
    wanted = better.conversion.thresholds
    found = {key: (wanted[key] / value).float() for key, value in present.conversion.thresholds.items()}
    return {key: float(ratio.quantile(quantile)) for key, ratio in found.items()}


def _mismatch(ratios: Mapping[str, float], places: Mapping[str, int], gain: float) -> Cause:
    """Return how the calibration data differs from this data: in its scale, or in the range of some layer."""
    first = sorted(ratio for key, ratio in ratios.items() if places[key] == 1)
    scale = first[len(first) // 2] if first else 1.0
    if scale >= SCALED or scale <= 2 / SCALED:
        way = f"{scale:.3g} times larger" if scale > 1 else f"{1 / scale:.3g} times smaller"
        sentence = f"The inputs are about {way} than those of the calibration."
        remedy = "Scale inputs as in training, and calibrate on inputs of the same scale."
        return Cause("input scale", sentence, (Remedy(remedy, gain),))
    key = max(ratios, key=lambda key: abs(math.log(ratios[key])))
    sentence = (
        f"The calibration data had another range: thresholds of {key} should be {ratios[key]:.2g} times as large."
    )
    return Cause("uncalibrated range", sentence, (Remedy("Calibrate on samples like these.", gain),))


def _half(batch: Batch, first: int) -> Batch:
    """Return every second sample of a batch."""
    inputs = tuple(value[first::2] if isinstance(value, Tensor) else value for value in batch.inputs)
    return Batch(inputs, batch.target[first::2] if isinstance(batch.target, Tensor) else None)


def _is_labels(target: Any) -> bool:
    return isinstance(target, Tensor) and target.dim() == 1 and not target.is_floating_point()


def _call(model: Any, batch: Batch) -> Any:
    return model(*batch.inputs)


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
