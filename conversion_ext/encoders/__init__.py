"""How an input becomes a sequence of time steps: frozen values, one file each."""

from __future__ import annotations

from conversion_ext.encoders.base import Encoder
from conversion_ext.encoders.constant_current import ConstantCurrent
from conversion_ext.encoders.delta import Delta
from conversion_ext.encoders.latency import Latency
from conversion_ext.encoders.poisson import Poisson
from conversion_ext.registry import import_siblings

__all__ = ["ConstantCurrent", "Delta", "Encoder", "Latency", "Poisson"]

import_siblings(__name__, list(__path__))
