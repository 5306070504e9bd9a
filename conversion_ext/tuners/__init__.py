"""Tuners: corrections of a converted network against its ANN. One file each."""

from __future__ import annotations

from conversion_ext.registry import import_siblings
from conversion_ext.tuners.base import Task, Tuner, register_tuner, tuners
from conversion_ext.tuners.bias_correction import BiasCorrection

__all__ = ["BiasCorrection", "Task", "Tuner", "register_tuner", "tuners"]

import_siblings(__name__, list(__path__))
