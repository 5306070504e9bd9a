"""Recipes by name, one file each: ``recipes.names()``, ``recipes.get(name)``."""

from __future__ import annotations

from conversion_ext.recipes.adaptation import adapt_cao2015, max_to_average, replace_relu
from conversion_ext.recipes.centring import center_features
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.registry import Registry, import_siblings

__all__ = [
    "adapt_cao2015",
    "center_features",
    "for_steps",
    "get",
    "items",
    "max_to_average",
    "names",
    "register_recipe",
    "replace_relu",
    "resolve_recipe",
    "use_of",
]


_recipes: Registry[Recipe] = Registry("recipe", lambda value: isinstance(value, Recipe), "a Recipe")
_untimed: dict[str, Recipe] = {}
_uses: dict[str, str] = {}
get = _recipes.get
items = _recipes.items
names = _recipes.names


def register_recipe(name: str, recipe: Recipe, *, without_T: Recipe | None = None, use: str = "") -> Recipe:
    """Add a recipe under ``name``, after which ``convert(..., recipe=name)`` finds it.

    ``without_T`` takes its place where ``convert`` is given no number of steps; ``use`` is a sentence on when to use
    it, which ``conversion-ext methods`` shows.
    """
    if without_T is not None and not isinstance(without_T, Recipe):
        raise TypeError(f"The recipe {name!r} without T is {without_T!r}; register a Recipe.")
    _recipes.register(name, recipe)
    _uses[name] = use
    if without_T is not None:
        _untimed[name] = without_T
    return recipe


def use_of(name: str) -> str:
    """Return the sentence on when to use the recipe called ``name``."""
    return _uses.get(name, "")


def for_steps(name: str, T: int | None) -> Recipe:
    """Return the recipe called ``name`` as ``convert`` uses it for T steps, or for no particular number (None)."""
    recipe = get(name)
    return recipe if T is not None else _untimed.get(name, recipe)


def resolve_recipe(recipe: str | Recipe, T: int | None = None) -> tuple[str, Recipe]:
    """Return (name, recipe) for a name or a value, as it is used for T steps."""
    if isinstance(recipe, str):
        return recipe, for_steps(recipe, T)
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe is a {type(recipe).__name__}; pass a name ({', '.join(names())}) or a Recipe.")
    return "custom", recipe


import_siblings(__name__, list(__path__))
