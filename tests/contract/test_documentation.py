"""What is documented is what there is: parameters, results and errors of public functions, and when to use a method."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import conversion_ext as cx
from conversion_ext import data, exchange, integer, recipes
from conversion_ext.conversion.observation import calibrate
from conversion_ext.neurons.base import Neuron
from conversion_ext.normalizers import normalizers
from conversion_ext.tuners import tuners
from tests.discovery import values_of

MANY = 4  # parameters that a sentence can name
NEVER_RAISE = {"advance", "advance_compiled"}  # kernels: who calls them has checked


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function by name: the verbs of the package, of the packages that it exports, and of the others."""
    homes = [cx, *(home for name in cx.__all__ if inspect.ismodule(home := getattr(cx, name))), integer, data, exchange]
    public = {"calibrate": calibrate} | {name: getattr(home, name) for home in homes for name in home.__all__}
    yield from sorted((name, value) for name, value in public.items() if inspect.isfunction(value))


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


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if len(documented(FUNCTIONS[name])) > MANY])
def test_results_and_errors_of_public_functions_are_documented(name):
    doc = inspect.getdoc(FUNCTIONS[name]) or ""
    assert "\nReturns:\n" in doc
    assert "\nRaises:\n" in doc or name in NEVER_RAISE


METHODS = {name: type(value) for name, value in values_of(Neuron).items()} | {
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
    assert recipes.use_of(name).startswith("Use it ")


def test_public_names_exist_and_are_few():
    assert len(cx.__all__) < 55
    assert not [name for name in cx.__all__ if not hasattr(cx, name)]
