"""Training of converted networks: losses, terms added to them, and rules of the gradient."""

from __future__ import annotations

from conversion_ext.training import losses, task_losses
from conversion_ext.training.gradients.base import Gradient, register_gradient
from conversion_ext.training.gradients.online import Online
from conversion_ext.training.gradients.ottt import OTTT
from conversion_ext.training.gradients.rate import DSR, Rate
from conversion_ext.training.gradients.through_time import Fused, ThroughTime
from conversion_ext.training.gradients.tssl_bp import TSSLBP
from conversion_ext.training.optimization import Training
from conversion_ext.training.terms import ActivityBand, Distillation, OutputDistillation, RateDistillation

__all__ = [
    "DSR",
    "OTTT",
    "TSSLBP",
    "ActivityBand",
    "Distillation",
    "Fused",
    "Gradient",
    "Online",
    "OutputDistillation",
    "Rate",
    "RateDistillation",
    "ThroughTime",
    "Training",
    "losses",
    "register_gradient",
    "task_losses",
]
