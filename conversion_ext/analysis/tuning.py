"""Which recipe, and how many steps? Candidates compared on calibration data held out for it, within limits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import nn

from conversion_ext.analysis.candidates import FAMILIES, Limits
from conversion_ext.analysis.held_out import Data
from conversion_ext.analysis.metrics import metric_of
from conversion_ext.analysis.search import Candidate, Search, TuneResult
from conversion_ext.data.batches import Forward
from conversion_ext.data.sequences import Layout, sequence_layout
from conversion_ext.errors import require
from conversion_ext.types import Family, whole

__all__ = ["Candidate", "TuneResult", "tune"]


@torch.no_grad()
def tune(
    ann: nn.Module,
    calibration: Any,
    T: int | None = None,
    *,
    latency: int | None = None,
    neurons: float | None = None,
    spikes: float | None = None,
    family: str | Family | Sequence[str | Family] | None = None,
    budget: float | None = None,
    metric: Any = None,
    backend: str | None = None,
    forward: Forward | None = None,
    sequence: Layout = None,
    progress: bool = True,
) -> TuneResult:
    """Return the best network within limits, with the table of candidates that it was chosen from.

    Use it to ask for "the best within 24 steps end to end and twice the neurons": ``tune(ann, data, latency=24,
    neurons=2.0)``. Candidates are neurons of every kind (IF, looking ahead, weighted in time, copies, signed, bursts)
    with thresholds (percentile, least squared error) and corrections (of weights, potentials, biases, whole blocks),
    for T steps or the most that the latency allows. Three quarters of the calibration samples calibrate them, the
    others judge. Several processes give a part of the data each, and choose the same.

    Args:
        ann: the network; it is not changed.
        calibration: data as ``convert`` takes it; with labels the metric judges, otherwise agreement with the ANN.
        T: the number of time steps. By default as many as ``latency`` allows and half of them or, where only ``spikes``
            are limited, powers of two.
        latency: the most steps end to end, from the first input to the decision.
        neurons: the most neurons, an integer, or a float: how many times those of a plain conversion.
        spikes: the most spikes per input, on average.
        family: "binary", "weighted", "signed" or "multi-level", or several of them; by default all.
        budget: seconds. A candidate starts only if it is expected to end in time; one always does.
        metric: a name (accuracy, top5, binary_accuracy, miou, rmse, r2, correlation), or a function
            ``(output, target) -> number``.
        backend: the framework of the network, see ``convert``.
        forward: calls a network of several inputs, see ``convert``.
        sequence: the layout of sequences of frames, see ``convert``.
        progress: show progress bars.

    Returns:
        A :class:`TuneResult`: ``.snn`` is the best network, ``.candidates`` all that were tried.

    Raises:
        ValueError: for arguments that do not fit, and where no candidate is within the limits.
        CalibrationError: where fewer than 8 samples are given.
    """
    families = _families(family)
    _check(T, latency, neurons, spikes, budget)
    began = time.monotonic()
    metric_of(metric)
    data = Data(ann, calibration, forward, sequence_layout(sequence))
    options: dict[str, Any] = {"backend": backend, "progress": progress}
    search = Search(ann, data, Limits(latency, neurons, spikes), metric, options, began, budget)
    search.run(families, T)
    return search.result()


def _families(family: Any) -> list[Family]:
    named = FAMILIES if family is None else [family] if isinstance(family, str) else list(family)
    known = [str(each) for each in FAMILIES]
    require(
        bool(named) and all(str(each) in known for each in named),
        f"family={family!r}: choose one or several of {', '.join(known)}.",
    )
    return [Family(str(each)) for each in named]


def _check(T: Any, latency: Any, neurons: Any, spikes: Any, budget: Any) -> None:
    for name, value in (("T", T), ("latency", latency)):
        number = whole(value)
        require(
            value is None or (number is not None and number >= 1),
            f"{name}={value!r}: the number of time steps is an integer >= 1.",
        )
    for name, value in (("neurons", neurons), ("spikes", spikes), ("budget", budget)):
        positive = isinstance(value, Real) and not isinstance(value, bool) and float(value) > 0
        require(value is None or positive, f"{name}={value!r}: give a number > 0, or None for no limit.")
    require(
        not (T is None and latency is None and spikes is None),
        "Of more steps every network is better: pass T=, or the most that latency= or spikes= may be.",
    )
