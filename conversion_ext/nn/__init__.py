"""Modules for hand-written networks of either framework, and for converted ones."""

from conversion_ext.nn.channel_scale import ChannelScale
from conversion_ext.nn.differential import Differential
from conversion_ext.nn.magnitude import SpikingMagnitude
from conversion_ext.nn.matrix_product import MatrixProduct
from conversion_ext.nn.max_pool import SpikingMaxPool, SpikingMaxPool1d, SpikingMaxPool2d, SpikingMaxPool3d
from conversion_ext.nn.qcfs import QCFS
from conversion_ext.nn.soft_lif import SoftLIF
from conversion_ext.nn.softmax import SpikingSoftmax
from conversion_ext.nn.stateful import Stateful
from conversion_ext.nn.trained import Trained

__all__ = [
    "QCFS",
    "ChannelScale",
    "Differential",
    "MatrixProduct",
    "SoftLIF",
    "SpikingMagnitude",
    "SpikingMaxPool",
    "SpikingMaxPool1d",
    "SpikingMaxPool2d",
    "SpikingMaxPool3d",
    "SpikingSoftmax",
    "Stateful",
    "Trained",
]
