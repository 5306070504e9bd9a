"""Turn trained PyTorch networks into spiking ones, inside SpikingJelly and snnTorch."""

from __future__ import annotations

from conversion_ext import backends, encoders, errors, neurons, nn, normalizers, readouts, recipes, training, tuners
from conversion_ext.backends.base import register_backend
from conversion_ext.check import check
from conversion_ext.confidence import Confidence as Confidence
from conversion_ext.conversion import Conversion
from conversion_ext.convert import convert
from conversion_ext.errors import (
    CalibrationError,
    ConversionError,
    Problem,
    UnsupportedError,
)
from conversion_ext.evaluate import Evaluation, evaluate
from conversion_ext.neurons import IF, SignedIF
from conversion_ext.nn.root import reset
from conversion_ext.normalizers import Maximum, MeanSquaredError, Percentile
from conversion_ext.normalizers.base import register_normalizer
from conversion_ext.operators.base import register_operator
from conversion_ext.passes.base import register_pass
from conversion_ext.recipe import Recipe
from conversion_ext.recipes import register_recipe
from conversion_ext.simulate import Simulation, simulate
from conversion_ext.synops import OperationCount as OperationCount
from conversion_ext.synops import synops
from conversion_ext.training.finetune import FinetuneResult as FinetuneResult
from conversion_ext.training.finetune import finetune
from conversion_ext.tune import TuneResult as TuneResult
from conversion_ext.tune import tune
from conversion_ext.tuners import BiasCorrection, WeightCompensation, register_tuner
from conversion_ext.twin import Forecast as Forecast
from conversion_ext.twin import forecast, twin
from conversion_ext.types import PerChannel, PerLayer, Reset

__all__ = [
    "IF",
    "BiasCorrection",
    "CalibrationError",
    "Conversion",
    "ConversionError",
    "Evaluation",
    "Maximum",
    "MeanSquaredError",
    "PerChannel",
    "PerLayer",
    "Percentile",
    "Problem",
    "Recipe",
    "Reset",
    "SignedIF",
    "Simulation",
    "UnsupportedError",
    "WeightCompensation",
    "backends",
    "check",
    "convert",
    "encoders",
    "errors",
    "evaluate",
    "finetune",
    "forecast",
    "neurons",
    "nn",
    "normalizers",
    "readouts",
    "recipes",
    "register_backend",
    "register_normalizer",
    "register_operator",
    "register_pass",
    "register_recipe",
    "register_tuner",
    "reset",
    "simulate",
    "synops",
    "training",
    "tune",
    "tuners",
    "twin",
]
__version__ = "0.1.0"
