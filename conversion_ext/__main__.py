"""The commands of ``conversion-ext`` (or ``python -m conversion_ext``): demo, methods, check, convert, info, ...

The arguments are declared in ``conversion_ext_command``; a function here runs the command of its name.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import re
import sys
import tempfile
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext import recipes
from conversion_ext.backends.base import backends
from conversion_ext.data import datasets
from conversion_ext.demo.networks import weights_of
from conversion_ext.errors import optional_import, require
from conversion_ext.exchange.summary import summary
from conversion_ext.normalizers import normalizers
from conversion_ext.operators import operators
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.training.gradients import gradients
from conversion_ext.training.losses import losses
from conversion_ext.tuners import tuners
from conversion_ext_command import main

__all__ = ["bench", "check", "convert", "demo", "diagnose", "docs", "info", "main", "methods"]


def demo(options: argparse.Namespace) -> int:
    """Run the demonstration, print its table, and write its report and picture."""
    from conversion_ext.demo import demo

    folder = options.out or Path(tempfile.mkdtemp(prefix="conversion_ext_"))
    require(folder.absolute().parent.is_dir(), f"--out {folder}: there is no folder {folder.parent}; make it first.")
    if options.data == "digits":
        # For images this small a second thread gains little, and on a busy machine waiting for it costs tenfold.
        torch.set_num_threads(1)
    names = [options.backend] if options.backend else None
    story = demo.run(
        options.data, names, options.T, weights=options.weights, recipes=options.recipe, images=options.images,
        seed=options.seed,
    )  # fmt: skip
    print(f"\n{story}\n")
    print("\n".join(story.diagnosis.summary("the plain conversion")))
    print(f"The report is {story.write(folder).absolute()}, accuracy over time accuracy.png beside it.")
    return 0


def check(options: argparse.Namespace) -> int:
    """Print every obstacle of a model; equal ones are one line with all their places."""
    problems = cx.check(_model(options), torch.rand(options.input), recipe=options.recipe)
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for problem in problems:
        places[problem.reason, problem.remedy].append(
            f"{problem.path} ({problem.line})" if problem.line else problem.path
        )
    for (reason, remedy), places_of in places.items():
        print(f"{', '.join(places_of)}: {reason} {remedy}")
    print(f"{options.model}: {len(problems) or 'no'} problem{'s' if len(problems) != 1 else ''} found.")
    return 1 if problems else 0


def convert(options: argparse.Namespace) -> int:
    """Convert a model and save the network."""
    require(options.out.absolute().parent.is_dir(), f"--out {options.out}: there is no such folder; make it first.")
    require(not options.out.is_dir(), f"--out {options.out} is a folder; name a file, for example net.safetensors.")
    images, _ = _data(options.data, options.samples)
    snn = cx.convert(_model(options), images, recipe=options.recipe, T=options.T, backend=options.backend)
    cx.save(snn, options.out)
    print(snn.conversion.table())
    print(f"{snn.conversion!r} is saved in {options.out}.")
    return 0


def info(options: argparse.Namespace) -> int:
    """Print what a saved network is, without building it."""
    print(summary(options.network))
    return 0


def diagnose(options: argparse.Namespace) -> int:
    """Print why a saved network decides unlike its ANN, and write the report."""
    images, labels = _data(options.data, options.samples)
    data = images if labels is None else (images, labels)
    diagnosis = cx.diagnose(cx.load(options.network), _model(options), data, options.T)
    print(diagnosis)
    if options.html:
        print(f"The report is {diagnosis.html(options.html).absolute()}.")
    return 0


def bench(options: argparse.Namespace) -> int:
    """Print the speed of simulation on this machine."""
    from conversion_ext.demo import bench

    print(bench.report(options.backend, options.T, tuple(options.batch), options.repeats))
    return 0


def docs(options: argparse.Namespace) -> int:
    """Show or write the reference of all modules."""
    pdoc = importlib.import_module("pdoc.__main__") if optional_import("pdoc", "pdoc", "test") else None
    assert pdoc is not None
    folder = ["--output-directory", str(options.out)] if options.out else []
    pdoc.cli(["conversion_ext", "--docformat", "google", *folder])
    return 0


class Method(NamedTuple):
    """One row of the table of methods: what kind it is, what it is called, what it does."""

    kind: str
    name: str
    effect: str


def methods(options: argparse.Namespace) -> int:
    """Print everything that is registered."""
    rows = list(registered())
    if options.markdown:
        print(markdown(rows))
        return 0
    width = max(len(method.name) for method in rows if method.kind != "operator")
    for kind, name, effect in rows:
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
        yield Method("recipe", name, f"{recipes.use_of(name)} {_choices(recipe)}".strip())
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
    """Return the first line of the documentation of a registered value, and when to use it."""
    doc = (inspect.getdoc(value) or "").replace("``", "`")
    use = re.search(r"Use it [^.]*\.", " ".join(doc.split()))
    return f"{doc.partition(chr(10))[0]} {use[0] if use else ''}".strip()


def _model(options: argparse.Namespace) -> nn.Module:
    """Import ``module:factory``, call it with its arguments unless it is a model, and load the weights."""
    module, _, factory = options.model.partition(":")
    require(
        bool(module and factory), f"{options.model!r} names no model; write module:factory, as in mymodels:make_net."
    )
    try:
        made: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        message = f"Module {module!r} cannot be imported ({error}); run this command where it can, or install it."
        raise ValueError(message) from error
    for name in factory.split("."):
        require(hasattr(made, name), f"{module!r} has no {factory!r}; name a function that returns the model.")
        made = getattr(made, name)
    model = made if isinstance(made, nn.Module) else _called(made, options)
    require(
        isinstance(model, nn.Module),
        f"{options.model!r} gave a {type(model).__name__}; it must be, or return, a torch.nn.Module.",
    )
    if options.weights:
        _load_weights(model, options.weights)
    return model.eval()


def _called(factory: Any, options: argparse.Namespace) -> Any:
    """Return what the factory makes of the arguments given with --arg."""
    pairs = [argument.partition("=") for argument in options.arg]
    by_name = {name: _literal(value) for name, equals, value in pairs if equals}
    in_order = [_literal(name) for name, equals, _ in pairs if not equals]
    try:
        return factory(*in_order, **by_name)
    except Exception as error:
        raise ValueError(f"{options.model}({', '.join(options.arg)}) raised {type(error).__name__}: {error}") from error


def _literal(text: str) -> Any:
    """Return the Python value that a text is, or the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        model.load_state_dict(weights_of(path))
    except RuntimeError as error:
        raise ValueError(f"--weights {path} does not fit the model: {error}") from error


def _data(name: str, samples: int) -> tuple[Tensor, Tensor | None]:
    """Return images and labels (if any) of a data set of the demonstration, or of a file."""
    if name in datasets.DATASETS:
        images, labels = datasets.load(name).calibration.tensors
        return images[:samples], labels[:samples]
    path = Path(name)
    known = f"give one of {', '.join(datasets.DATASETS)}, or a .npz or .pt file"
    require(path.suffix in (".npz", ".pt") and path.exists(), f"--data {name}: there is no such data; {known}.")
    try:
        held: Any = dict(np.load(path)) if path.suffix == ".npz" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # readers raise whatever comes up in a damaged or foreign file
        raise ValueError(f"--data {name} cannot be read ({type(error).__name__}); {known}.") from error
    parts = held.values() if isinstance(held, dict) else held if isinstance(held, (list, tuple)) else [held]
    arrays = [torch.as_tensor(part) for part in parts if isinstance(part, (Tensor, np.ndarray))]
    tensors = [array[:samples] for array in arrays if array.dim() > 0]
    images = next((tensor for tensor in tensors if tensor.dim() > 1), None)
    require(images is not None, f"--data {name} holds no array [N, ...]; {known} with images and, if any, labels.")
    assert images is not None
    require(
        images.is_floating_point(),
        f"--data {name} holds {images.dtype}; store images as float32, scaled as in training.",
    )
    labels = next((t for t in tensors if t.dim() == 1 and not t.is_floating_point() and len(t) == len(images)), None)
    return images.float(), None if labels is None else labels.long()


if __name__ == "__main__":
    sys.exit(main())
