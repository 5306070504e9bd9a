"""The trade between thresholds, input rate, time, accuracy and operations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from conversion_ext.analysis.evaluation import evaluate
from conversion_ext.analysis.metrics import Metric
from conversion_ext.analysis.synaptic_operations import synops
from conversion_ext.conversion.pipeline import convert
from conversion_ext.encoders import Poisson
from conversion_ext.errors import CalibrationError, require
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.normalizers import Normalizer, Percentile
from conversion_ext.operators.sites import Site
from conversion_ext.simulation.samples import batches_of, require_network, steps_to_try
from conversion_ext.tables import Report, Sheet

__all__ = ["Point", "Sweep", "sweep"]


@dataclass(frozen=True)
class Point:
    """One setting and what came of it: the score, spikes and synaptic operations per sample."""

    threshold: float
    gain: float | None
    T: int
    score: float
    spikes: float
    synops: float

    @property
    def accuracy(self) -> float:
        """The score, where it is an accuracy."""
        return self.score


@dataclass(frozen=True, repr=False)
class Sweep(Report, Sequence[Point]):
    """The points of a sweep, a sequence; prints as a table. ``metric``: what their scores measure."""

    points: tuple[Point, ...]
    metric: Metric

    def __getitem__(self, index: Any) -> Any:
        return self.points[index]

    def __len__(self) -> int:
        return len(self.points)

    def sheet(self) -> Sheet:
        """Return one row per point."""
        rows = [
            (
                f"{p.threshold:g}",
                "" if p.gain is None else f"{p.gain:g}",
                str(p.T),
                self.metric.shown(p.score),
                f"{p.spikes:,.0f}",
                f"{p.synops:,.0f}",
            )
            for p in self.points
        ]
        return Sheet(("threshold", "gain", "T", self.metric.name, "spikes", "synops"), rows, left=0)

    def to_dict(self) -> dict[str, Any]:
        """Return all values as plain data."""
        return super().to_dict() | {"metric": self.metric.name}


def sweep(
    snn: SpikingNetwork,
    data: Any,
    T: int | Iterable[int],
    *,
    ann: nn.Module | None = None,
    calibration: Any = None,
    thresholds: Sequence[float] = (1.0,),
    gains: Sequence[float] = (),
    metric: Any = None,
) -> Sweep:
    """Convert ``ann`` as ``snn`` was, with every setting; return a point for each and every T: score against cost.

    With one setting the points are the curve of accuracy against synaptic operations over T.

    Args:
        snn: a converted network, whose recipe, options and backend are used.
        data: (input, target) batches that judge; operations are counted on the first of them.
        T: one or several numbers of time steps.
        ann: the network that ``snn`` was made from.
        calibration: calibration data as ``convert`` takes it.
        thresholds: factors on all thresholds of the recipe: larger ones mean fewer spikes and coarser activations.
        gains: those of ``Poisson(gain)``, the probability that a pixel of 1 spikes; () keeps the encoder. The mean
            input is x for any gain, so Diehl's lower input rate s, at which spikes of size 1 come more seldom, is gain
            s with thresholds / s.
        metric: as for :func:`evaluate`.

    Returns:
        A :class:`Sweep`: a point for every setting and T; it prints as a table.

    Raises:
        ValueError: for settings that are not positive.

    Reference: Diehl et al., IJCNN 2015 (threshold and input rate against accuracy and spikes); Rueckauer et al., 2017.
    """
    steps = steps_to_try(T)
    for name, values in (("thresholds", thresholds), ("gains", gains)):
        require(all(v > 0 for v in values), f"{name}={list(values)}: give positive numbers.")
    require(len(thresholds) > 0, "thresholds=(): give at least one factor; 1 leaves the thresholds as they are.")
    require(ann is not None, "sweep() converts the ANN anew: pass ann=, the network that was converted.", TypeError)
    assert ann is not None
    record, plain = require_network(snn).record, snn.conversion.recipe
    first = next(batches_of(snn, data, "loader", targets=True), None)
    require(first is not None, "The loader holds no batch; pass at least one (input, target).", CalibrationError)
    assert first is not None
    points: list[Point] = []
    measured: Metric | None = None
    for factor, gain in product(thresholds, gains or (None,)):
        varied = replace(plain, normalizer=Scaled(of=plain.normalizer, factor=factor))
        varied = varied if gain is None else replace(varied, encoder=Poisson(gain))
        other = convert(
            ann, calibration, recipe=varied, T=steps[-1], backend=record.backend, fold=record.folded, progress=False,
            **record.options.arguments(),
        )  # fmt: skip
        scores = evaluate(other, data, steps[-1], at=steps, metric=metric, progress=False)
        measured = scores.metric
        for t, score in zip(steps, scores.score.tolist(), strict=True):
            count = synops(other, [first], t)
            points.append(Point(factor, gain, t, score, sum(count.spikes.values()), count.synops))
    assert measured is not None
    return Sweep(tuple(points), measured)


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
        unscaled = self.of.thresholds(model, sites, stats, levels)
        caps = {site.key: torch.inf if site.cap is None else site.cap for site in sites}
        return {key: (threshold * self.factor).clamp(max=caps[key]) for key, threshold in unscaled.items()}
