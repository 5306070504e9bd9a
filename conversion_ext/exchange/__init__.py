"""Keep a converted network in a file, and hand it to other tools."""

from __future__ import annotations

from conversion_ext.exchange.files import load, save
from conversion_ext.exchange.nir_export import to_nir
from conversion_ext.exchange.nir_import import from_nir

__all__ = ["from_nir", "load", "save", "to_nir"]
