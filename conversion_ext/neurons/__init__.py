"""Neuron models as values with their dynamics; a backend makes one a module of its framework (threshold always 1)."""

from __future__ import annotations

from conversion_ext.neurons.base import Heaviside, Neuron, State
from conversion_ext.neurons.compiled import advance_compiled
from conversion_ext.neurons.filtered import Filtered
from conversion_ext.neurons.integrate_and_fire import IF, BurstIF, SignedEncoder, SignedIF
from conversion_ext.neurons.leaky import LIF, PLIF, RefractoryLIF
from conversion_ext.neurons.updates import advance
from conversion_ext.neurons.weighted import WeightedEncoder, WeightedIF
from conversion_ext.registry import import_siblings

__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "BurstIF",
    "Filtered",
    "Heaviside",
    "Neuron",
    "RefractoryLIF",
    "SignedEncoder",
    "SignedIF",
    "State",
    "WeightedEncoder",
    "WeightedIF",
    "advance",
    "advance_compiled",
]

import_siblings(__name__, list(__path__))
