"""How the outputs of the time steps become one output: frozen values, one file each."""

from __future__ import annotations

from conversion_ext.readouts.base import Memory, Readout
from conversion_ext.readouts.confidence import Confidence
from conversion_ext.readouts.first_spike import FirstSpike
from conversion_ext.readouts.mean_output import MeanOutput
from conversion_ext.readouts.membrane_potential import MembranePotential
from conversion_ext.readouts.population import Population
from conversion_ext.readouts.spike_count import SpikeCount
from conversion_ext.registry import import_siblings

__all__ = [
    "Confidence",
    "FirstSpike",
    "MeanOutput",
    "MembranePotential",
    "Memory",
    "Population",
    "Readout",
    "SpikeCount",
]

import_siblings(__name__, list(__path__))
