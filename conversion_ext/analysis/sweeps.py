"""The trade between thresholds, input rate, time, accuracy and operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from conversion_ext.analysis.evaluation import evaluate
from conversion_ext.analysis.synaptic_operations import synops
from conversion_ext.conversion.pipeline import convert
from conversion_ext.data.batches import labelled
from conversion_ext.encoders import Poisson
from conversion_ext.errors import require
from conversion_ext.normalizers import Normalizer, Percentile
from conversion_ext.operators.sites import Site
from conversion_ext.recipes import resolve_recipe
from conversion_ext.recipes.recipe import Recipe

__all__ = ["Point", "sweep"]


@dataclass(frozen=True)
class Point:
    """One setting and what came of it: accuracy in [0, 1], spikes and synaptic operations per sample."""

    threshold: float
    gain: float | None
    T: int
    accuracy: float
    spikes: float
    synops: float


def sweep(
    ann: nn.Module,
    calibration: Any,
    loader: Any,
    T: Sequence[int],
    *,
    recipe: str | Recipe = "default",
    thresholds: Sequence[float] = (1.0,),
    gains: Sequence[float] = (),
    backend: str | None = None,
) -> list[Point]:
    """Convert ``ann`` with every setting and return one point for each and every T: accuracy against what it costs.

    ``thresholds``: factors on all thresholds of the recipe: larger ones mean fewer spikes and coarser activations.
    ``gains``: those of ``Poisson(gain)``, the probability that a pixel of 1 spikes; () keeps the encoder. The mean
    input is x for any gain, so Diehl's lower input rate s, at which spikes of size 1 come more seldom, is gain s with
    thresholds / s. With one setting the points are the curve of accuracy against synaptic operations over T.

    ``loader`` yields (input, target) batches; operations are counted on the first of them.

    Reference: Diehl et al., IJCNN 2015 (threshold and input rate against accuracy and spikes); Rueckauer et al., 2017.
    """
    steps = sorted({int(t) for t in T})
    require(bool(steps) and steps[0] >= 1, f"T={list(T)}: name at least one number of steps >= 1.")
    for name, values in (("thresholds", thresholds), ("gains", gains)):
        require(all(v > 0 for v in values), f"{name}={list(values)}: give positive numbers.")
    require(len(thresholds) > 0, "thresholds=(): give at least one factor; 1 leaves the thresholds as they are.")
    plain = resolve_recipe(recipe)[1]
    x = next(iter(labelled(loader)))[0]
    points: list[Point] = []
    for factor in thresholds:
        for gain in gains or (None,):
            varied = replace(plain, normalizer=Scaled(of=plain.normalizer, factor=factor))
            varied = varied if gain is None else replace(varied, encoder=Poisson(gain))
            snn = convert(ann, calibration, recipe=varied, T=steps[-1], backend=backend, progress=False)
            accuracy = evaluate(snn, loader, steps[-1], at=steps, progress=False).accuracy.tolist()
            for t, right in zip(steps, accuracy, strict=True):
                count = synops(snn, x, t)
                points.append(Point(factor, gain, t, right, sum(count.spikes.values()), count.synops))
    return points


@dataclass(frozen=True, kw_only=True)
class Scaled(Normalizer):
    """The thresholds of another normalizer times a factor, within the caps of clipped ReLUs."""

    of: Normalizer = field(default_factory=Percentile)
    factor: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "granularity", self.of.granularity)

    @property
    def needs_calibration(self) -> bool:
        """As the other."""
        return self.of.needs_calibration

    @property
    def needs_T(self) -> bool:
        """As the other."""
        return self.of.needs_T

    @property
    def runs(self) -> int:
        """As the other."""
        return self.of.runs

    def statistics(self, site: Site) -> Any:
        """Return what the other collects."""
        return self.of.statistics(site)

    def thresholds(
        self, model: GraphModule, sites: Sequence[Site], stats: Mapping[str, Any], levels: int | None
    ) -> dict[str, Tensor]:
        """Return {site key: threshold} in the order of ``sites``."""
        found = self.of.thresholds(model, sites, stats, levels)
        caps = {site.key: torch.inf if site.cap is None else site.cap for site in sites}
        return {key: (threshold * self.factor).clamp(max=caps[key]) for key, threshold in found.items()}
