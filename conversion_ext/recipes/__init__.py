"""Recipes by name, one file each: ``recipes.names()``, ``recipes.get(name)``."""

from __future__ import annotations

from conversion_ext.recipe import Recipe
from conversion_ext.registry import Registry, import_siblings
from conversion_ext.retrain import average_pooling, replace_relu

__all__ = ["average_pooling", "get", "items", "names", "register_recipe", "replace_relu"]

_recipes: Registry[Recipe] = Registry("recipe")
get = _recipes.get
items = _recipes.items
names = _recipes.names


def register_recipe(name: str, recipe: Recipe) -> Recipe:
    """Add a recipe under ``name``, after which ``convert(..., recipe=name)`` finds it."""
    return _recipes.register(name, recipe)


import_siblings(__name__, list(__path__))
