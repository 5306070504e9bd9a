"""Converted networks in integers: weights, currents and potentials, the same in every backend."""

from __future__ import annotations

from conversion_ext.integer.conversion import integers
from conversion_ext.integer.description import IntegerLayer, IntegerNeurons, overflows, parameters

__all__ = ["IntegerLayer", "IntegerNeurons", "integers", "overflows", "parameters"]
