"""The command line: ``python -m conversion_ext demo | methods | check | info | bench``."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import conversion_ext as cx
from conversion_ext import recipes
from conversion_ext.backends.base import backends
from conversion_ext.errors import ConversionError, require
from conversion_ext.exchange.summary import summary
from conversion_ext.normalizers import normalizers
from conversion_ext.operators import operators
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.training.gradients.base import gradients
from conversion_ext.training.losses import losses
from conversion_ext.tuners import tuners

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 ``check`` found problems, 2 wrong request."""
    parser = argparse.ArgumentParser(prog="python -m conversion_ext", description="ANN to SNN conversion.")
    commands = parser.add_subparsers(required=True, metavar="command")
    adders = {
        "demo": _add_demo, "methods": _add_methods, "check": _add_check, "info": _add_info, "bench": _add_bench,
    }  # fmt: skip
    for name, add in adders.items():
        doc = inspect.getdoc(add) or ""
        add(commands.add_parser(name, help=doc, description=doc))
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ConversionError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _add_demo(parser: argparse.ArgumentParser) -> None:
    """Train a small network on real data, convert it for each framework, show accuracy over time."""
    parser.add_argument("--backend", help="spikingjelly, snntorch or reference; default: every installed framework")
    parser.add_argument("--T", type=int, default=64, help="time steps (default: 64)")
    parser.add_argument("--data", default="digits", help="digits (default) or fashion-mnist")
    parser.add_argument("--plot", type=Path, default=Path("conversion_ext_demo.png"), help="where to save the plot")
    parser.add_argument("--seed", type=int, default=0, help="of training (default: 0)")
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from conversion_ext.demo import demo

    folder = options.plot.absolute().parent
    require(folder.is_dir(), f"--plot {options.plot}: there is no folder {folder}; make it or name another file.")
    if options.data == "digits":
        # For images this small a second thread gains little, and on a busy machine waiting for it costs tenfold.
        torch.set_num_threads(1)
    names = [options.backend] if options.backend else None
    report = demo.run(options.data, names, options.T, seed=options.seed)
    print(f"\n{report}")
    report.plot(options.plot)
    print(f"Accuracy over time is drawn in {options.plot.absolute()}.")
    return 0


class Method(NamedTuple):
    """One row of the table of methods: what kind it is, what it is called, what it does."""

    kind: str
    name: str
    effect: str


def _add_methods(parser: argparse.ArgumentParser) -> None:
    """List everything that is registered: recipes, normalizers, tuners, losses, gradients, backends, operators."""
    parser.add_argument("--markdown", action="store_true", help="as the table of the README")
    parser.set_defaults(run=_methods)


def _methods(options: argparse.Namespace) -> int:
    methods = list(registered())
    if options.markdown:
        print(markdown(methods))
        return 0
    width = max(len(method.name) for method in methods if method.kind != "operator")
    for kind, name, effect in methods:
        if kind == "operator":  # it stands for many calls, so their names follow what it does
            print(f"{kind:12}{effect}")
            print(textwrap.fill(name, 100, initial_indent=" " * 14, subsequent_indent=" " * 14))
        else:
            print(f"{kind:12}{name:{width}}  {effect}")
    return 0


def markdown(methods: Sequence[Method], shown: int = 5) -> str:
    """Return the README's table: of an operator it names the first calls."""
    lines = ["| kind | name | effect |", "| --- | --- | --- |"]
    for kind, name, effect in methods:
        names = name.split(", ")
        more = f", ... ({len(names)} calls)" if len(names) > shown else ""
        lines.append(
            f"| {kind} | {', '.join(f'`{each}`' for each in names[:shown])}{more} | {effect.replace('|', '&#124;')} |"
        )
    return "\n".join(lines)


def registered() -> Iterator[Method]:
    """Iterate over everything registered; an operator is one row for all calls that it covers."""
    for name, recipe in recipes.items():
        yield Method("recipe", name, _choices(recipe))
    for registry in (normalizers, tuners, losses, gradients, backends):
        for name, value in registry.items():
            yield Method(registry.kind, name, _effect(value))
    calls: dict[Any, list[str]] = defaultdict(list)
    for name, rule in operators.items():
        # Modules of our own are what converted networks hold, not what a user brings.
        if not name.startswith("conversion_ext.") and name not in calls[rule]:
            calls[rule].append(name)
    for rule, names in calls.items():
        if names:
            yield Method("operator", ", ".join(names), _effect(rule))


def _choices(recipe: Recipe) -> str:
    """Return what a recipe chooses differently from ``Recipe()``, and its normalizer and neuron always."""
    plain = Recipe()
    values = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    shown = [n for n, value in values.items() if n in ("normalizer", "neuron") or value != getattr(plain, n)]
    text = ", ".join(f"{name}={values[name]!r}" for name in shown)
    return re.sub(r"<([\w.]+): [^>]*>", r"\1", text)


def _effect(value: Any) -> str:
    """Return the first line of the documentation of a registered value."""
    return (inspect.getdoc(value) or "").partition("\n")[0].replace("``", "`")


def _add_check(parser: argparse.ArgumentParser) -> None:
    """List everything that stands between a model and its conversion; exit code 1 if there is anything."""
    parser.add_argument("model", help="module:factory, for example torchvision.models:resnet18")
    parser.add_argument("--input", required=True, type=_shape, help="shape of one batch, for example 1,1,28,28")
    parser.add_argument("--recipe", default="default", help="name of a recipe (default: default)")
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    problems = cx.check(_model(options.model), torch.rand(options.input), recipe=options.recipe)
    for problem in problems:
        print(problem)
    print(f"{options.model}: {len(problems) or 'no'} problem{'s' if len(problems) != 1 else ''} found.")
    return 1 if problems else 0


def _add_info(parser: argparse.ArgumentParser) -> None:
    """Say what a file holds that cx.save wrote: recipe, versions, sites and thresholds; exit code 2 if it is none."""
    parser.add_argument("file", type=Path, help="what conversion_ext.save wrote")
    parser.set_defaults(run=_info)


def _info(options: argparse.Namespace) -> int:
    print(summary(options.file))
    return 0


def _shape(text: str) -> tuple[int, ...]:
    """Parse "1,1,28,28"."""
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape; write sizes with commas, for example 1,1,28,28")
    return shape


def _model(path: str) -> nn.Module:
    """Import ``module:factory`` and build the model; the factory may be the model itself."""
    module, _, factory = path.partition(":")
    require(bool(module and factory), f"{path!r} names no model; write module:factory, as in mymodels:make_net.")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        message = f"Module {module!r} cannot be imported ({error}); run this command where it can, or install it."
        raise ValueError(message) from error
    for name in factory.split("."):
        require(hasattr(found, name), f"{module!r} has no {factory!r}; name a function that returns the model.")
        found = getattr(found, name)
    model = found if isinstance(found, nn.Module) else found()
    require(
        isinstance(model, nn.Module),
        f"{path!r} gave a {type(model).__name__}; it must be, or return, a torch.nn.Module.",
    )
    return model


def _add_bench(parser: argparse.ArgumentParser) -> None:
    """Measure simulation on this machine beside T forward passes of the ANN and the framework's own loop."""
    parser.add_argument("--backend", help="spikingjelly, snntorch or reference; default: the first installed")
    parser.add_argument("--T", type=_positive, default=32, help="time steps (default: 32)")
    parser.add_argument("--batch", type=_positive, nargs="+", default=[1, 64], help="batch sizes (default: 1 64)")
    parser.add_argument("--repeats", type=_positive, default=5, help="runs of which the median counts (default: 5)")
    parser.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> int:
    from conversion_ext.demo import bench

    print(bench.report(options.backend, options.T, tuple(options.batch), options.repeats))
    return 0


def _positive(text: str) -> int:
    """Parse a number of steps, samples or runs."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number >= 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
