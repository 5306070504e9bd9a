"""Why is my accuracy low? The likely causes in order, each with the changes that help and their measured effect."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from conversion_ext import plots
from conversion_ext.analysis.case import Case, Remedy, Run
from conversion_ext.analysis.causes import NOTABLE, Cause, causes_of
from conversion_ext.analysis.decomposition import Decomposition, decompose
from conversion_ext.analysis.page import page
from conversion_ext.analysis.reference import evaluating
from conversion_ext.errors import require
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.simulation.samples import require_network, require_steps
from conversion_ext.tables import Report, Sheet
from conversion_ext.types import Family

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Diagnosis", "SiteFacts", "diagnose"]

SATURATED = 0.99  # of the largest rate
SETTLED = 0.01 + 1e-9  # around the last agreement
SHOWN = 3  # causes on a screen


@dataclass(frozen=True)
class SiteFacts:
    """One site at T steps: mean firing rate in spikes per step, and shares in [0, 1].

    ``saturated``: neurons that fire at (almost) every step; ``silent``: channels without a spike on all samples;
    ``dead``: channels whose activation is 0 in the ANN too.
    """

    key: str
    firing_rate: float
    saturated: float
    silent: float
    dead: float


@dataclass(frozen=True, repr=False)
class Diagnosis(Report):
    """What ``diagnose`` measured; ``print`` shows one screen, ``html`` writes a report, ``plot`` returns a figure.

    ``agreement``: the share of samples on which SNN and ANN decide alike after each step (for outputs that are not
    [N, classes]: 1 minus the relative error); ``twin_agreement``: that of the static limit; ``accuracy`` and
    ``ann_accuracy``: None without labels; ``errors``: None where ``decompose`` does not apply, for a reason in
    ``notes``. ``remedies``: all cheap changes that were tried, with their effect on the network as it is, the best
    first; empty where nothing is to be gained. ``graded``: what sends real values instead of spikes; ``scales``: the
    scales that no weight absorbed; ``outside``: the share of samples beyond the calibrated range, None for neurons that
    do not keep what they clip.
    """

    T: int
    samples: int
    agreement: tuple[float, ...]
    twin_agreement: float
    accuracy: float | None
    ann_accuracy: float | None
    latency_steps: int
    spikes_per_sample: float
    neurons: int
    causes: tuple[Cause, ...]
    sites: tuple[SiteFacts, ...]
    errors: Decomposition | None
    notes: tuple[str, ...]
    remedies: tuple[Remedy, ...] = ()
    graded: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    outside: float | None = None

    @property
    def settled(self) -> int:
        """The first step from which on the agreement stays within one point of the last."""
        late = [t for t, value in enumerate(self.agreement, 1) if abs(value - self.agreement[-1]) > SETTLED]
        return max(late, default=0) + 1

    def sheet(self) -> Sheet:
        """Return the table of sites below the causes."""
        return Sheet(_HEADER, [_row(fact, self.errors) for fact in self.sites], "\n".join(_screen(self)))

    def _repr_html_(self) -> str:
        return page(self, whole=False)

    def html(self, path: str | Path) -> Path:
        """Write the report to ``path``, one file without outside resources, and return the path."""
        path = Path(path)
        path.write_text(page(self), encoding="utf-8")
        return path

    def summary(self, name: str = "the SNN") -> list[str]:
        """Return in a few lines why the network called ``name`` decides unlike its ANN."""
        return [f"Why {name} decides unlike the ANN in {100 * (1 - self.agreement[-1]):.1f} % of the samples:"] + [
            *_causes(self)
        ]

    def plot(self) -> Figure:
        """Return the errors of every site as a figure (see ``conversion_ext.plots`` for others)."""
        require(self.errors is not None, f"There are no errors by site: {'; '.join(self.notes)}")
        assert self.errors is not None
        return plots.errors(self.errors)


def diagnose(snn: SpikingNetwork, ann: nn.Module, data: Any, T: int) -> Diagnosis:
    """Return why ``snn`` decides unlike ``ann`` at T steps: causes in order, with remedies and their measured effect.

    Use it first when an accuracy is low. Every second sample calibrates the repairs, the others judge them. A cause
    ranks by how much agreement its best remedy brings back; what no conversion can repair comes first. It costs about
    five conversions and ten simulations of the data: some hundred samples are enough. Of sequences of frames T is the
    length; thresholds are tried on them, and fits to T steps of a constant input are not.

    Args:
        snn: the converted network.
        ann: the network it was made from.
        data: what ``convert`` reads as calibration data, at least 8 samples; labels add accuracies.
        T: number of time steps.

    Raises:
        TypeError: ``snn`` was not made by ``convert``.
        ValueError: ``T`` is not an integer >= 1.
        CalibrationError: ``data`` holds fewer than 8 samples.
    """
    require_network(snn)
    require_steps(T)
    with warnings.catch_warnings(), evaluating(ann):
        warnings.simplefilter("ignore")  # what repairs would warn of is part of the report
        case = Case(snn, ann, data, T)
        run = case.run(snn, T)
        now = run.agreement[-1]
        causes = sorted(causes_of(case, now), key=lambda cause: -cause.gain)
        remedies = [] if now > 1 - NOTABLE else [trial.over(now) for trial in case.trials]
        errors, notes = _errors(case)
        static, outside = case.static(snn), case.outside()
    rows = snn.conversion.table()
    return Diagnosis(
        T, case.samples, run.agreement, static, run.accuracy, case.accuracy(case.expected), run.latency_steps,
        run.spikes, run.neurons, tuple(causes), tuple(_facts(case, run)), errors,
        (*snn.conversion.notes, *case.notes, *notes),
        tuple(sorted(remedies, key=lambda remedy: math.inf if remedy.gain is None else -remedy.gain)),
        graded=tuple(row.key for row in rows if row.emits is Family.GRADED and row.kind != "synapse"),
        scales=tuple(row.key for row in rows if row.kind in ("shortcut", "scale")),
        outside=outside,
    )  # fmt: skip


def _facts(case: Case, run: Run) -> Iterator[SiteFacts]:
    """Yield what each site did."""
    sites = case.snn.sites()
    for key, rate in run.rates.items():
        channels = rate.transpose(0, 1).flatten(1) if rate.dim() > 1 else rate[None]
        saturated = (rate >= SATURATED * sites[key].spec.levels).double().mean()
        silent = (channels.amax(1) == 0).double().mean()
        yield SiteFacts(key, float(rate.double().mean()), float(saturated), float(silent), case.dead.get(key, 0.0))


def _errors(case: Case) -> tuple[Decomposition | None, list[str]]:
    """Return the errors of every site, or why there are none."""
    try:
        return decompose(case.snn, case.judge, case.T, ann=case.ann), []
    except ValueError as error:
        return None, [f"No errors by site: {error}"]


def _screen(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield the lines above the table of ``print(diagnosis)``."""
    yield from _measured(diagnosis)
    yield ""
    yield from _causes(diagnosis)
    yield ""


def _measured(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield what was measured in a few lines."""
    parts = [("ANN", diagnosis.ann_accuracy), ("SNN", diagnosis.accuracy), ("agreement", diagnosis.agreement[-1])]
    measured = ", ".join(f"{name} {100 * value:.2f} %" for name, value in parts if value is not None)
    yield f"{measured} at T={diagnosis.T} on {diagnosis.samples} samples"
    yield (
        f"static limit of T steps {100 * diagnosis.twin_agreement:.2f} %; latency {diagnosis.latency_steps} steps, "
        f"{diagnosis.spikes_per_sample:,.0f} spikes per sample, {diagnosis.neurons:,} neurons"
    )
    yield from _aside(diagnosis)


def _causes(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield the first causes with their remedies, and what else was tried."""
    for number, cause in enumerate(diagnosis.causes[:SHOWN], 1):
        yield f"{number}. {cause.name}: {cause.sentence}"
        yield from (f"   - {remedy}" for remedy in cause.remedies)
    shown = {remedy.sentence for cause in diagnosis.causes[:SHOWN] for remedy in cause.remedies}
    others = [remedy for remedy in diagnosis.remedies if remedy.sentence not in shown]
    yield from ["Also tried:"] if others else []
    yield from (f"   - {remedy}" for remedy in others)
    if not diagnosis.causes:
        alike = diagnosis.agreement[-1] > 1 - NOTABLE
        yield "The SNN decides as its ANN does." if alike else "No single change that was tried closes the gap."


def _aside(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield a line of what matters beside the errors: transient, inputs out of range, values that are no spikes."""
    facts = [f"settled from step {diagnosis.settled}"] if diagnosis.T > 1 else []
    if diagnosis.outside is not None:
        facts.append(f"{100 * diagnosis.outside:.0f} % of the samples beyond the calibrated range")
    facts += [f"{len(diagnosis.graded)} graded"] if diagnosis.graded else []
    facts += [f"{len(diagnosis.scales)} scales left"] if diagnosis.scales else []
    if facts:
        yield "; ".join(facts)


_PARTS = ("clipping", "quantization", "inherited", "unevenness")
_HEADER = ("site", "firing rate", "saturated", "silent", *_PARTS)


def _row(fact: SiteFacts, errors: Decomposition | None) -> tuple[str, ...]:
    """Return the cells of one site."""
    site = next((each for each in errors.sites if each.key == fact.key), None) if errors is not None else None
    parts = ("-" if site is None else f"{getattr(site, f'{name}_error'):.3f}" for name in _PARTS)
    shares = (f"{100 * share:.0f} %" for share in (fact.saturated, fact.silent))
    return (fact.key, f"{fact.firing_rate:.4f}", *shares, *parts)
