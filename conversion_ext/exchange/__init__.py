"""Keep a converted network in a file, and hand it to other tools."""

from __future__ import annotations

from conversion_ext.exchange.checks import check
from conversion_ext.exchange.files import load, save
from conversion_ext.exchange.nir_export import to_nir
from conversion_ext.exchange.nir_import import from_nir
from conversion_ext.exchange.onnx_export import to_onnx
from conversion_ext.exchange.outputs import spiking_output
from conversion_ext.exchange.sums import sum_pools

__all__ = ["check", "from_nir", "load", "save", "spiking_output", "sum_pools", "to_nir", "to_onnx"]
