"""The search of ``tune``: candidates converted and judged, one after the other, while there is time."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from conversion_ext import graph
from conversion_ext.analysis.candidates import Limits, Trial, passes_of, trials
from conversion_ext.analysis.decomposition import decompose
from conversion_ext.analysis.held_out import HELD_OUT, Data
from conversion_ext.analysis.metrics import Custom, Metric
from conversion_ext.analysis.reference import ends_in_sigmoid
from conversion_ext.analysis.scores import main_output
from conversion_ext.conversion.pipeline import convert
from conversion_ext.data.distributed import gathered
from conversion_ext.data.progress import logger
from conversion_ext.errors import require
from conversion_ext.graph.node_info import info
from conversion_ext.graph.values import map_tensors
from conversion_ext.network.depths import depths
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.neurons import IF, SignedEncoder
from conversion_ext.normalizers import Percentile
from conversion_ext.readouts.mean_output import MeanOutput
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.simulation.run import Runner
from conversion_ext.tables import Report, Sheet, plain
from conversion_ext.types import Family

__all__ = ["Candidate", "Search", "TuneResult"]

MOST_COPIES = 4


@dataclass(frozen=True)
class Candidate:
    """One row of the comparison, all measured on the held-out samples.

    ``score``: the metric, with half of its 95 % interval; ``behind``: by how much it is worse than the best candidate,
    with half of a paired 95 % interval, so that the difference is not significant where
    ``behind < behind_interval``.
    ``latency_steps`` end to end, ``neurons``, ``spikes`` per input; ``allowed``: whether it is within the limits.
    """

    recipe: Recipe
    T: int
    score: float
    interval: float
    latency_steps: int
    neurons: int
    spikes: float
    seconds: float
    allowed: bool = True
    behind: float = 0.0
    behind_interval: float = 0.0

    @property
    def name(self) -> str:
        """What the recipe is made of."""
        recipe = self.recipe
        parts = [type(recipe.normalizer).__name__, *(type(tuner).__name__ for tuner in recipe.tuners)]
        copies = recipe.copies
        if copies != 1:
            parts.append(f"{copies} copies" if isinstance(copies, int) else f"copies at {len(copies)} sites")
        return f"{_short(recipe.neuron)}: {', '.join(parts)}, {_short(recipe.readout)}"


def _short(value: Any) -> str:
    """Return a value as it is written, without what it has by default."""
    own = [f for f in fields(value) if f.default is MISSING or getattr(value, f.name) != f.default]
    return f"{type(value).__name__}({', '.join(f'{f.name}={getattr(value, f.name)!r}' for f in own)})"


@dataclass(frozen=True, repr=False)
class TuneResult(Report):
    """``snn``: the best allowed recipe; ``candidates``: what was tried, allowed ones first, the best first.

    ``measure``: the name of the metric, or "agreement"; ``samples``: how many held-out samples judged; ``metric``: what
    was measured, and ``reason``: why;
    ``refitted``: whether ``snn`` was converted anew with all calibration data, for which there must be time.
    ``skipped``: how many more candidates would have taken longer than what was left of the budget.
    """

    snn: SpikingNetwork
    recipe: Recipe
    T: int
    candidates: tuple[Candidate, ...]
    measure: str
    samples: int
    metric: Metric
    reason: str = ""
    refitted: bool = True
    skipped: int = 0

    @property
    def ranking(self) -> str:
        """What the order of the candidates is worth: the half interval of a difference, and how many lie within it."""
        rivals = [c for c in self.candidates[1:] if c.allowed]
        equal = 1 + sum(c.behind <= c.behind_interval for c in rivals)
        halves = sorted(c.behind_interval for c in rivals)
        wide = f", a difference being known to ± {self.metric.shown(halves[len(halves) // 2])}" if halves else ""
        return f"{equal} of {len(rivals) + 1} cannot be told from the best by {self.samples} samples{wide}"

    def sheet(self) -> Sheet:
        """Return a row per candidate, and which of them do not differ significantly from the best."""
        shown = self.metric.shown
        header = ("candidate", "T", self.measure, "±", "behind", "±", "latency", "neurons", "spikes", "seconds")
        rows = [
            (
                c.name + ("" if c.allowed else " (beyond the limits)"), str(c.T), shown(c.score), shown(c.interval),
                shown(c.behind), shown(c.behind_interval), str(c.latency_steps), f"{c.neurons:,}",
                f"{c.spikes:,.0f}", f"{c.seconds:.1f}",
            )
            for c in self.candidates
        ]  # fmt: skip
        notes = [self.ranking]
        notes += [f"{self.skipped} more would not have fitted into the budget"] if self.skipped else []
        notes += [] if self.refitted else ["the network is calibrated without the held-out samples: no time was left"]
        return Sheet(header, rows, f"{self.measure} on {self.samples} held-out samples", notes)

    def to_dict(self) -> dict[str, Any]:
        """Return all values as plain data."""
        candidates = [plain(c) | {"recipe": repr(c.recipe)} for c in self.candidates]
        return super().to_dict() | {
            "recipe": repr(self.recipe), "candidates": candidates, "metric": self.metric.name,
        }  # fmt: skip


class Search:
    """Candidates tried one after the other, while there is time."""

    def __init__(
        self, ann: nn.Module, data: Data, limits: Limits, metric: Any, options: Mapping[str, Any], began: float,
        budget: float | None,
    ) -> None:  # fmt: skip
        self.ann, self.data, self.limits, self.metric = ann, data, limits, metric
        self.options, self.began, self.budget = {**options, **data.options}, began, budget
        self.ratios = list[float]()  # of the seconds of candidates to those expected
        self.tried = list[tuple[Candidate, Tensor]]()  # and the sums of the metric, of every sample
        self.best: tuple[float, SpikingNetwork] | None = None
        self.skipped = 0
        self.sizes = dict[str, int]()  # neurons of each site of a plain conversion
        self.signed = set[str]()  # sites of values of either sign

    def run(self, families: Sequence[Family], T: int | None) -> None:
        """Try what fits into the budget, and the cheapest if nothing else does."""
        depth = self._depth()
        todo = list(trials(families, T, self.limits, depth))
        require(
            bool(todo),
            f"No candidate of the families {', '.join(families)} decides within latency={self.limits.latency} steps"
            f"{'' if T is None else f' after T={T}'}; a chain of {depth} sites that look ahead adds {depth - 1}. Allow "
            "more, or another family.",
        )
        fewest = min(self._neurons(trial.recipe) for trial in todo)
        todo = [trial for trial in todo if self.limits.allow(0, self._neurons(trial.recipe), 0)]
        require(
            bool(todo),
            f"No candidate has as few as {self.limits.neurons} neurons, and a plain conversion has {fewest:,}. Allow "
            "more; a float, as 2.0, is how many times those of a plain conversion.",
        )
        for trial in todo:
            if self._fits(trial):
                self._try(trial)
            else:
                self.skipped += 1
        if not self.tried:
            self.skipped -= 1
            self._try(min(todo, key=self._seconds))

    def _depth(self) -> int:
        """Return how many sites lie on the longest chain; a limit of neurons as a factor becomes a number."""
        sequence = bool(self.data.layout)
        few = [tuple(v[:, :8] if sequence else v[:8] for v in inputs) for inputs in self.data.fitted[:1]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few samples leave channels silent, which nobody needs to know here
            plain = convert(self.ann, few, recipe=Recipe(Percentile(99.9), IF()), **{**self.options, "progress": False})
        self.data.settle(self.metric, ends_in_sigmoid(plain))
        sites = dict(graph.modules_called(plain.body, SpikingSite))
        self.sizes = {site.key: _size(node) for node, site in sites.items()}
        self.signed = {site.key for site in sites.values() if isinstance(site.spec, SignedEncoder)}
        if isinstance(self.limits.neurons, float):
            self.limits = replace(self.limits, neurons=self.limits.neurons * sum(self.sizes.values()))
        return max(depths(plain.body).values(), default=1)

    def _neurons(self, recipe: Recipe) -> int:
        """Return at least how many neurons a trial's recipe takes, of as many copies everywhere."""
        assert isinstance(recipe.copies, int)
        return sum(size * (1 if key in self.signed else recipe.copies) for key, size in self.sizes.items())

    def _seconds(self, trial: Trial) -> float:
        """Return how long a trial is expected to take, from what those before it took."""
        return max(self.ratios[-3:], default=1.0) * self.data.unit * passes_of(trial, self.data.count)

    def _left(self) -> float:
        """Return the seconds of the budget that are left, the least of all processes."""
        return math.inf if self.budget is None else min(gathered(self.budget - (time.monotonic() - self.began)))

    def _fits(self, trial: Trial) -> bool:
        return max(gathered(self._seconds(trial))) <= self._left()

    def _try(self, trial: Trial) -> None:
        """Convert and judge, with the readout that starts at once and later."""
        start, expected = time.monotonic(), self.data.unit * passes_of(trial, self.data.count)
        snn = convert(self.ann, self.data.fitted, recipe=trial.recipe, T=trial.T, **self.options)
        for first in sorted({0, trial.T // 4, trial.T // 2} if trial.recipe.neuron.ahead == 0 else {0}):
            self._judge(snn, replace(trial, recipe=replace(trial.recipe, readout=MeanOutput(start=first))), start)
        taken = max(gathered(time.monotonic() - start))
        self.ratios.append(taken / max(expected, 1e-9))
        if trial.copies_wanted and self._fits(trial):
            copies = self._copies(snn, trial.T)
            if copies:
                self._try(replace(trial, recipe=replace(trial.recipe, copies=copies), copies_wanted=False))

    def _judge(self, snn: SpikingNetwork, trial: Trial, start: float) -> None:
        """Add a candidate; keep its network if it is the best so far."""
        metric, sums, spikes, steps = self.data.metric, list[Tensor](), list[Tensor](), 0
        own = trial.recipe.readout == MeanOutput()  # whose steps may have got weights
        runner = Runner(snn, trial.T, (trial.T,), {"readout": None if own else trial.recipe.readout})
        for judge, target in zip(self.data.judges, self.data.targets, strict=True):
            run = runner(judge.inputs, judge.sequence)
            output = run.output if isinstance(metric, Custom) else main_output(run.output)[0]
            sums += [metric.sums(_sample(output, i), _sample(target, i)) for i in range(len(judge))]
            spikes.append(run.spikes_per_sample.double().cpu())
            steps = run.latency_steps
        each = torch.cat([part for part in gathered(torch.stack(sums) if sums else torch.zeros(0, 0)) if len(part)])
        sent = torch.cat(gathered(torch.cat(spikes) if spikes else torch.zeros(0, dtype=torch.float64)))
        steps = max(gathered(steps))
        neurons = sum(self.sizes[key] * site.neurons for key, site in snn.sites().items() if key in self.sizes)
        without = _jackknife(metric, each)
        allowed = self.limits.allow(steps, neurons, float(sent.mean()))
        candidate = Candidate(
            trial.recipe, trial.T, metric.value(each.sum(0)), _interval(without), steps, neurons,
            float(sent.mean()), max(gathered(time.monotonic() - start)), allowed,
        )  # fmt: skip
        self.tried.append((candidate, without))
        logger.info("candidate %s, T=%d: %s", candidate.name, candidate.T, metric.shown(candidate.score))
        score = candidate.score * self._sign
        if allowed and (self.best is None or score > self.best[0]):
            self.best = score, snn

    @property
    def _sign(self) -> int:
        return 1 if self.data.metric.maximize else -1

    def _copies(self, snn: SpikingNetwork, T: int) -> dict[str, int]:
        """Return {site: m} that spends the neurons allowed where ``decompose`` finds most error for each neuron."""
        assert self.limits.neurons is not None
        errors = {
            site.key: site.quantization_error**2 + site.unevenness_error**2
            for site in decompose(snn, self.data.fitted, T, ann=self.ann).sites
            if site.key in self.sizes and type(snn.sites()[site.key].spec) is IF
        }
        room = self.limits.neurons - sum(self.sizes.values())
        copies = dict.fromkeys(errors, 1)

        def gain(key: str) -> float:  # an m-th neuron takes the error, which falls as 1 / m, down by this much
            m = copies[key]
            return errors[key] * (1 / m**2 - 1 / (m + 1) ** 2) / self.sizes[key]

        while choice := [key for key in copies if copies[key] < MOST_COPIES and self.sizes[key] <= room]:
            best = max(choice, key=gain)
            copies[best] += 1
            room -= self.sizes[best]
        return {key: m for key, m in copies.items() if m > 1}

    def result(self) -> TuneResult:
        """Return the best network, converted with all data where there is time."""
        require(
            self.best is not None,
            f"None of the {len(self.tried)} candidates that were tried is within the limits {self.limits}; the nearest "
            f"has {self._nearest()}. Allow more, or give more time.",
        )
        assert self.best is not None
        ranked = sorted(self.tried, key=lambda pair: (not pair[0].allowed, -self._sign * pair[0].score))
        (best, reference), snn = ranked[0], self.best[1]
        rows = tuple(
            replace(c, behind=self._sign * (best.score - c.score), behind_interval=_interval(reference - without))
            for c, without in ranked
        )
        refit = best.seconds * HELD_OUT / (HELD_OUT - 1) <= self._left()
        if refit:
            everything = [batch.inputs for batch in self.data.everything]
            snn = convert(self.ann, everything, recipe=best.recipe, T=best.T, **self.options)
        else:
            made = snn.conversion.recipe
            if best.recipe.readout != MeanOutput():  # which may have got weights
                made = replace(made, readout=best.recipe.readout)
            snn.record = replace(snn.record, recipe_value=made)
        read = replace(snn.record.options, forward=self.data.forward, sequence=self.data.layout or None)
        snn.record = replace(snn.record, options=read)  # how the user's data is read
        return TuneResult(
            snn, best.recipe, best.T, rows, self.data.measure, self.data.samples, self.data.metric, self.data.reason,
            refit, self.skipped,
        )  # fmt: skip

    def _nearest(self) -> str:
        candidate = min((c for c, _ in self.tried), key=lambda c: (c.latency_steps, c.neurons, c.spikes))
        return f"latency {candidate.latency_steps}, {candidate.neurons:,} neurons, {candidate.spikes:,.0f} spikes"


def _sample(value: Any, i: int) -> Any:
    return map_tensors(value, lambda v: v[i : i + 1].detach().cpu())


def _size(node: Node) -> int:
    return math.prod(info(node).shape)


def _jackknife(metric: Metric, each: Tensor) -> Tensor:
    """Return the metric without each sample in turn, [N], for the sums of every sample [N, K]."""
    total = each.sum(0)
    return torch.tensor([metric.value(total - sums) for sums in each], dtype=torch.float64)


def _interval(without: Tensor) -> float:
    """Return half of a 95 % interval by the jackknife (Quenouille 1949, Tukey 1958)."""
    n = len(without)
    return 1.96 * math.sqrt((n - 1) * float(without.var(correction=0).nan_to_num(0.0)))
