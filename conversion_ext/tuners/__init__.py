"""Tuners: corrections of a converted network against its ANN. One file each."""

from __future__ import annotations

from conversion_ext.registry import import_siblings
from conversion_ext.tuners.base import Tuner, register_tuner, tuners
from conversion_ext.tuners.bias_correction import BiasCorrection
from conversion_ext.tuners.block_reconstruction import BlockReconstruction
from conversion_ext.tuners.compensation import Compensation
from conversion_ext.tuners.decision_table import DecisionTable
from conversion_ext.tuners.initial_potential import InitialPotential, PerNeuron
from conversion_ext.tuners.offset_spike import OffsetSpike
from conversion_ext.tuners.output_weights import OutputWeights
from conversion_ext.tuners.residual_potential import ResidualPotential
from conversion_ext.tuners.voltage_clamp import VoltageClamp
from conversion_ext.tuners.walk import Task
from conversion_ext.tuners.weight_calibration import WeightCalibration
from conversion_ext.tuners.weight_compensation import WeightCompensation

__all__ = [
    "BiasCorrection",
    "BlockReconstruction",
    "Compensation",
    "DecisionTable",
    "InitialPotential",
    "OffsetSpike",
    "OutputWeights",
    "PerNeuron",
    "ResidualPotential",
    "Task",
    "Tuner",
    "VoltageClamp",
    "WeightCalibration",
    "WeightCompensation",
    "register_tuner",
    "tuners",
]

import_siblings(__name__, list(__path__))
