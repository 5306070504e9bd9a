"""Measure a converted network: accuracy, the limits of T steps, errors per site, operations and energy."""

from __future__ import annotations

from conversion_ext.analysis.decomposition import Decomposition, decompose
from conversion_ext.analysis.diagnosis import Diagnosis, diagnose
from conversion_ext.analysis.evaluation import Evaluation, evaluate
from conversion_ext.analysis.operations import Energy, EnergyModel, FortyFiveNanometres, OperationCount
from conversion_ext.analysis.saturation import Limits, clipped_share, limits
from conversion_ext.analysis.silence import estimate_start
from conversion_ext.analysis.sweeps import Sweep, sweep
from conversion_ext.analysis.synaptic_operations import synops
from conversion_ext.analysis.tuning import TuneResult, tune
from conversion_ext.analysis.twins import Forecast, forecast, twin

__all__ = [
    "Decomposition",
    "Diagnosis",
    "Energy",
    "EnergyModel",
    "Evaluation",
    "Forecast",
    "FortyFiveNanometres",
    "Limits",
    "OperationCount",
    "Sweep",
    "TuneResult",
    "clipped_share",
    "decompose",
    "diagnose",
    "estimate_start",
    "evaluate",
    "forecast",
    "limits",
    "sweep",
    "synops",
    "tune",
    "twin",
]
