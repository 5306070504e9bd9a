"""Rueckauer, Lungu, Hu, Pfeiffer, Liu: Conversion of continuous-valued deep networks (Front. Neurosci. 2017)."""

from __future__ import annotations

from conversion_ext.neurons import IF
from conversion_ext.normalizers import Percentile
from conversion_ext.recipe import Recipe
from conversion_ext.recipes import register_recipe
from conversion_ext.types import PerLayer

# Robust normalization per layer over positive activations, soft reset, analog input, the toolbox's default pool gate.
register_recipe(
    "rueckauer2017",
    Recipe(Percentile(99.9, granularity=PerLayer(), positive_only=True), IF(v_init=0.0), max_pool="fir"),
)
