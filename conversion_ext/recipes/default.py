"""The recipe that ``convert`` uses when none is named."""

from __future__ import annotations

from conversion_ext.neurons import IF, SignedIF
from conversion_ext.normalizers import Percentile
from conversion_ext.recipe import Recipe
from conversion_ext.recipes import register_recipe
from conversion_ext.types import Family, PerChannel

register_recipe("default", Recipe(Percentile(99.9, granularity=PerChannel()), IF(v_init=0.5)))
register_recipe(
    "default-signed", Recipe(Percentile(99.9, granularity=PerChannel()), SignedIF(v_init=0.5), family=Family.SIGNED)
)
