"""What a diagnosis works on: a network, its ANN and data in two halves, one to repair and one to judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext import recipes
from conversion_ext.analysis.reference import answers
from conversion_ext.analysis.saturation import clipped_share
from conversion_ext.analysis.scores import main_output
from conversion_ext.analysis.synaptic_operations import synops
from conversion_ext.analysis.twins import twin
from conversion_ext.conversion.observation import calibrate
from conversion_ext.conversion.pipeline import convert
from conversion_ext.errors import CalibrationError, ConversionError, require
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.normalizers import Maximum, Percentile
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.simulation.samples import Batch, Samples, batches_of
from conversion_ext.simulation.simulation import Simulation, simulate
from conversion_ext.tuners import BlockReconstruction
from conversion_ext.types import PerChannel

__all__ = ["Case", "Remedy", "Run", "Trial"]

MORE = 4  # times as many steps, to see what time alone would give
QUICK = ("default", "default-lookahead", "default-copies", "default-signed", "default-multilevel")
THOROUGH = "default-tuned"
LONGEST, MOST_WORK = 8, 1e11  # steps for which it is meant, and multiplications that a diagnosis spends on it
SLACK = 0.01  # of its charge that a sample may lose beyond those of the calibration before it counts as outside


@dataclass(frozen=True)
class Remedy:
    """A change, by how much it raised the agreement with the ANN on held-out samples, and what it costs.

    ``gain``: None where it was not measured; ``cost``: in words, beside the present network.
    """

    sentence: str
    gain: float | None = None
    cost: str = ""

    @property
    def effect(self) -> str:
        """The measured gain in points, empty where there is none."""
        return "" if self.gain is None else f"{100 * self.gain:+.1f} points"

    def __str__(self) -> str:
        known = ", ".join(part for part in (self.effect, self.cost) if part)
        return f"{self.sentence} ({known})" if known else self.sentence


@dataclass(frozen=True)
class Trial:
    """A change that was tried, and the agreement it gave; ``score`` is None where it would have taken too long."""

    sentence: str
    score: float | None
    cost: str = ""

    def over(self, base: float) -> Remedy:
        """Return what it adds to an agreement of ``base``."""
        return Remedy(self.sentence, None if self.score is None else self.score - base, self.cost)


class Case:
    """The networks and the data of one diagnosis: ``fit`` calibrates repairs, ``judge`` measures them."""

    def __init__(self, snn: SpikingNetwork, ann: nn.Module, data: Any, T: int) -> None:
        self.snn, self.ann, self.T, self.notes = snn, ann, T, list[str]()
        given = snn.record.options
        batches = list(batches_of(snn, data))
        self.sequences = any(batch.sequence for batch in batches)
        self.options: dict[str, Any] = {
            "forward": Samples.call, "progress": False,
            "skip": given.skip, "leaf": given.leaf, "graded": given.graded, "relay": given.relay,
        }  # fmt: skip
        self.fit = [_half(batch, 0) for batch in batches]
        self.judge = [_half(batch, 1) for batch in batches]
        self.samples = sum(len(batch) for batch in self.judge)
        require(self.samples >= 4, "The data holds fewer than 8 samples; give at least 8.", CalibrationError)
        self.expected = [main_output(answers(ann, batch))[0] for batch in self.judge]
        widest = Recipe(Maximum(granularity=PerChannel()))
        stats = calibrate(ann, [batch.samples() for batch in self.fit], recipe=widest, **self.options).stats
        self.dead = {key: float((seen.maximum <= 0).double().mean()) for key, seen in stats.items()}

    def run(self, snn: SpikingNetwork, T: int, at: tuple[int, ...] | None = None) -> Run:
        """Return what a simulation of the samples that judge shows after the steps ``at``."""
        return Run(self, snn, [_simulated(snn, batch, T, at) for batch in self.judge])

    def score(self, snn: SpikingNetwork) -> float:
        """Return the agreement of a network after T steps."""
        return self.run(snn, self.T, (self.T,)).agreement[-1]

    def static(self, snn: SpikingNetwork) -> float:
        """Return the agreement of the twin of a network."""
        network: Callable[..., Tensor] = twin(snn, self.T)
        with torch.no_grad():
            return self.agreement([main_output(network(*batch.mean()))[0] for batch in self.judge])

    def converted(self, **changes: Any) -> SpikingNetwork:
        """Return the network converted anew on data like this, with changes to its recipe."""
        return self.by(replace(self.snn.conversion.recipe, **changes), self.snn.conversion.T or self.T)

    def by(self, recipe: str | Recipe, T: int) -> SpikingNetwork:
        """Return the ANN converted by a recipe on data like this."""
        data, layout = [batch.inputs for batch in self.fit], "time_first" if self.sequences else False
        return convert(self.ann, data, recipe=recipe, T=T, backend="reference", sequence=layout, **self.options)

    @cached_property
    def again(self) -> SpikingNetwork:
        """The network converted anew, on data like this."""
        return self.converted()

    @cached_property
    def wide(self) -> SpikingNetwork:
        """The network converted anew, with thresholds that clip almost nothing."""
        granularity = self.snn.conversion.recipe.normalizer.granularity
        return self.converted(normalizer=Percentile(99.9, granularity=granularity), tuners=())

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """The cheap changes, all tried: thresholds, steps, other ways to spend latency and neurons, tuning."""
        return tuple(self._tried())

    def _tried(self) -> Iterator[Trial]:
        yield self._trial("Convert with Percentile(99.9) and no correction", self.wide)
        if self.sequences:  # as long as they are; and recipes that are fitted to T steps have no T to be fitted to
            names: Sequence[str] = ("frames",)
        else:
            yield self._trial(f"Simulate T={MORE * self.T} steps", self.snn, MORE * self.T)
            names = (*QUICK, THOROUGH)
        ours = self.snn.conversion.recipe
        for name in names:
            if recipes.get(name).family == ours.family and recipes.get(name) != ours:
                yield from self._recipe(name)

    def _recipe(self, name: str) -> Iterator[Trial]:
        """Yield what a recipe gives, or note why it cannot be tried."""
        sentence = f'Convert with T={self.T}, recipe="{name}"'
        if name == THOROUGH and (self.T > LONGEST or self._work(name) > MOST_WORK):
            if self.T <= LONGEST:
                yield Trial(sentence, None, "not measured, it takes minutes")
            return
        try:
            yield self._trial(sentence, self.by(name, self.T))
        except (ConversionError, ValueError) as error:
            self.notes.append(f"Recipe {name} was not tried: {error}")

    def _work(self, name: str) -> float:
        """Return about how many multiplications the descent of a recipe takes, forward and backward."""
        x = tuple(value[:1] if isinstance(value, Tensor) else value for value in self.fit[0].samples())
        macs = synops(self.snn, x, 1).macs
        descents = [t for t in recipes.get(name).tuners if isinstance(t, BlockReconstruction)]
        return sum(3 * macs * self.T * tuner.steps * tuner.batch for tuner in descents)

    def _trial(self, sentence: str, snn: SpikingNetwork, T: int | None = None) -> Trial:
        """Return what a network gives, and what it costs beside the present one."""
        T = T or self.T
        run = self.run(snn, T, (T,))
        present = sum(self.snn.conversion.neurons.values())
        costs = [f"latency {run.latency_steps}"] if run.latency_steps != self.T else []
        costs += [f"{run.neurons / present:.3g} x the neurons"] if run.neurons != present else []
        return Trial(sentence, run.agreement[-1], ", ".join(costs))

    def outside(self) -> float | None:
        """Return the share of samples that lose more to clipping than any does in a network calibrated on such data."""
        try:
            most = {key: float(share.max()) for key, share in self._clipped(self.again, self.fit).items()}
            shares = self._clipped(self.snn, self.judge)
        except ValueError:  # neurons that do not keep what they could not send
            return None
        return float(torch.stack([share > most[key] + SLACK for key, share in shares.items()]).any(0).double().mean())

    def _clipped(self, snn: SpikingNetwork, batches: Sequence[Batch]) -> Mapping[str, Tensor]:
        return clipped_share(snn, batches, self.T)

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

    def __init__(self, case: Case, snn: SpikingNetwork, runs: Sequence[Simulation]) -> None:
        self.agreement = tuple(
            case.agreement([main_output(run.outputs)[0][i] for run in runs]) for i in range(len(runs[0].at))
        )
        self.accuracy = case.accuracy([main_output(run.output)[0] for run in runs])
        self.latency_steps = runs[0].latency_steps
        self.rates = {key: torch.cat([run.firing_rate[key] for run in runs]) for key in runs[0].firing_rate}
        self.spikes = float(torch.cat([run.spikes_per_sample for run in runs]).mean())
        self.neurons = sum(snn.conversion.neurons.values())


def _simulated(snn: SpikingNetwork, batch: Batch, T: int, at: tuple[int, ...] | None) -> Simulation:
    x, x_seq = (None, batch.inputs) if batch.sequence else (batch.inputs, None)
    return simulate(snn, x, T, x_seq=x_seq, at=at)


def _half(batch: Batch, first: int) -> Batch:
    """Return every second sample of a batch."""
    part = (slice(None), slice(first, None, 2)) if batch.sequence else slice(first, None, 2)
    inputs = tuple(value[part] if isinstance(value, Tensor) else value for value in batch.inputs)
    target = batch.target[first::2] if isinstance(batch.target, Tensor) else None
    return Batch(inputs, target, batch.sequence)


def _is_labels(target: Any) -> bool:
    return isinstance(target, Tensor) and target.dim() == 1 and not target.is_floating_point()
