"""Training of converted networks: losses, terms added to them, and rules of the gradient."""

from __future__ import annotations

from conversion_ext.training import losses
from conversion_ext.training.gradients import DSR, Gradient, Online, Rate, ThroughTime, register_gradient
from conversion_ext.training.spike_time import TSSLBP
from conversion_ext.training.terms import ActivityBand, Distillation, RateDistillation
from conversion_ext.training.traces import OTTT

__all__ = [
    "DSR",
    "OTTT",
    "TSSLBP",
    "ActivityBand",
    "Distillation",
    "Gradient",
    "Online",
    "Rate",
    "RateDistillation",
    "ThroughTime",
    "losses",
    "register_gradient",
]
