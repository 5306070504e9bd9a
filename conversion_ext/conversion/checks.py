"""Find every obstacle to a conversion before any calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from conversion_ext.capture.environment import in_plain_modes
from conversion_ext.capture.preparation import examine, silence_of
from conversion_ext.capture.private_copy import unwrapped
from conversion_ext.errors import Problem, UnsupportedError, require, warn
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.recipes import resolve_recipe
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.types import whole

__all__ = ["check", "check_network", "check_options"]


def check_network(ann: Any) -> None:
    """Raise where ``ann`` is no network, or one that is converted already."""
    require(isinstance(ann, nn.Module), f"ann must be a torch.nn.Module, got {type(ann).__name__}.", TypeError)
    require(not isinstance(ann, SpikingNetwork), "ann is a converted network already; pass the trained one.", TypeError)
    lazy = next((name for name, value in ann.named_parameters() if is_lazy(value)), None)
    require(lazy is None, f"{lazy} has no size before the network has seen an input; call it on a batch once.")


def check_options(T: Any, forward: Any, generator: Any, **switches: Any) -> None:
    """Raise for arguments of ``convert`` of another kind, which would be taken for something else."""
    steps = whole(T)
    require(
        T is None or (steps is not None and steps >= 1),
        f"T={T!r}: the number of time steps to optimise for is an integer >= 1, or None.",
    )
    for name, value in switches.items():
        require(isinstance(value, bool), f"{name}={value!r}: give True or False.", TypeError)
    require(forward is None or callable(forward), f"forward={forward!r}: give a function (model, batch).", TypeError)
    seeded = generator is None or isinstance(generator, torch.Generator)
    require(seeded, f"generator={generator!r}: give torch.Generator().manual_seed(...), or None.", TypeError)


@in_plain_modes
def check(
    ann: nn.Module,
    example_input: Any = None,
    *,
    recipe: str | Recipe = "default",
    graded: bool = True,
    skip: Sequence[str] = (),
    leaf: Sequence[Any] = (),
) -> list[Problem]:
    """Return every obstacle to converting ``ann``, each with path, source line, reason and remedy; [] if there is none.

    Nothing is calibrated and the model is not changed. A network that would not spike at all is warned of.

    Args:
        ann: the network.
        example_input: one batch [N, ...], or a tuple for several inputs; with it shapes are known, and operations that
            mix the samples of a batch are found as well, and the captured graph is compared with the network.
        recipe: a name or a :class:`Recipe`; what it demands of a network is checked too.
        graded: False refuses operations whose output is not spikes.
        skip: paths of modules that stay analog.
        leaf: types or paths of modules that are not traced into.
    """
    demands = resolve_recipe(recipe)[1].demands
    ann = unwrapped(ann)
    check_network(ann)
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    try:
        model, problems = examine(ann, None if example_input is None else inputs, skip, leaf, graded, demands)
    except UnsupportedError as error:  # not even captured
        return list(error.problems) or [Problem(type(ann).__name__, str(error), "")]
    if not problems and (silence := silence_of(model)):
        warn(silence)
    return problems
