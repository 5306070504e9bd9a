"""The recipe that ``convert`` uses when none is named."""

from __future__ import annotations

from conversion_ext.neurons import IF, BurstIF, SignedIF
from conversion_ext.normalizers import Percentile
from conversion_ext.recipe import Recipe
from conversion_ext.recipes import register_recipe
from conversion_ext.types import Family, PerChannel

register_recipe("default", Recipe(Percentile(99.9, granularity=PerChannel()), IF(v_init=0.5)))
register_recipe(
    "default-signed", Recipe(Percentile(99.9, granularity=PerChannel()), SignedIF(v_init=0.5), family=Family.SIGNED)
)
register_recipe(
    "default-multilevel",
    Recipe(Percentile(99.9, granularity=PerChannel()), BurstIF(v_init=0.5), family=Family.MULTI_LEVEL),
)
