"""Normalizers: how large is one spike of a site? One file each; a new one needs no line elsewhere."""

from conversion_ext.normalizers.base import Normalizer, normalizers, register_normalizer
from conversion_ext.normalizers.data_based import DataBased
from conversion_ext.normalizers.gaussian_mse import GaussianMSE
from conversion_ext.normalizers.maximum import Maximum
from conversion_ext.normalizers.mean_squared_error import MeanSquaredError
from conversion_ext.normalizers.model_based import ModelBased
from conversion_ext.normalizers.percentile import Percentile
from conversion_ext.normalizers.threshold_balancing import ThresholdBalancing
from conversion_ext.normalizers.trained import Trained
from conversion_ext.registry import import_siblings

__all__ = [
    "DataBased",
    "GaussianMSE",
    "Maximum",
    "MeanSquaredError",
    "ModelBased",
    "Normalizer",
    "Percentile",
    "ThresholdBalancing",
    "Trained",
    "normalizers",
    "register_normalizer",
]

import_siblings(__name__, list(__path__))
