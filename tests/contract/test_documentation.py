"""What is documented is what there is: parameters of public functions, and when to use each method."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import conversion_ext as cx
from conversion_ext import analysis, integer, recipes
from conversion_ext.integer.conversion import integers
from conversion_ext.neurons.base import Neuron
from conversion_ext.normalizers import normalizers
from conversion_ext.recipes.adaptation import replace_relu
from conversion_ext.tuners import tuners

MANY = 4  # parameters that a sentence can name


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function by name: the verbs of the package, of its analyses, and of integers."""
    seen: set[int] = set()
    extra = {"integers": integers, "replace_relu": replace_relu}
    for home, names in ((cx, cx.__all__), (analysis, analysis.__all__), (integer, getattr(integer, "__all__", ()))):
        extra |= {name: getattr(home, name) for name in names}
    for name, value in sorted(extra.items()):
        if inspect.isfunction(value) and id(value) not in seen:
            seen.add(id(value))
            yield name, value


FUNCTIONS = dict(functions())


def documented(function: Callable[..., Any]) -> list[str]:
    """The names that the section ``Args:`` lists, in order."""
    doc = inspect.getdoc(function) or ""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", doc + "\n", flags=re.MULTILINE)
    names = re.findall(r"^    ([*\w]+(?:, [*\w]+)*):", section[1], flags=re.MULTILINE) if section else []
    return [name.strip("* ") for group in names for name in group.split(",")]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_documented_parameters_are_those_of_the_signature(name):
    parameters = list(inspect.signature(FUNCTIONS[name]).parameters)
    listed = documented(FUNCTIONS[name])
    assert not listed or listed == parameters
    assert listed or len(parameters) <= MANY, f"{name} has {len(parameters)} parameters and no Args:"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_says_what_it_does(name):
    first = (inspect.getdoc(FUNCTIONS[name]) or "").partition("\n")[0]
    assert first.endswith((".", ":", "?")), first


def neurons() -> list[type[Neuron]]:
    found, left = [], [Neuron]
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        found += [kind] if kind.__module__.startswith("conversion_ext.") and kind is not Neuron else []
    return found


METHODS = {f"{kind.__module__}.{kind.__name__}": kind for kind in neurons()} | {
    name: kind
    for registry in (normalizers, tuners)
    for name, kind in registry.items()
    if kind.__module__.startswith("conversion_ext.")
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_when_to_use_it(name):
    assert "Use it" in (inspect.getdoc(METHODS[name]) or "")


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_says_when_to_use_it(name):
    if recipes.get(name) is not None and recipes.use_of(name):
        assert recipes.use_of(name).startswith("Use it ")
    else:
        assert not name.startswith("default"), f"{name} has no use="


def test_public_names_exist_and_are_few():
    assert len(cx.__all__) < 55
    assert not [name for name in cx.__all__ if not hasattr(cx, name)]
