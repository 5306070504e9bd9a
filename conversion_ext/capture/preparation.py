"""The front of a conversion: capture, exact passes, obstacles, output neurons, relays, sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.capture.demands import Demand
from conversion_ext.capture.passes import batch_problems, run_passes
from conversion_ext.capture.reference import rewriting_problem
from conversion_ext.capture.relays import insert_output_neurons, insert_relays
from conversion_ext.capture.tracing import capture_and_compare
from conversion_ext.data.inputs import tensors_of
from conversion_ext.errors import Problem, UnsupportedError
from conversion_ext.operators.base import Activation, operator_of
from conversion_ext.operators.sites import Site, SiteKind

__all__ = ["Prepared", "examine", "find_sites", "prepare", "problems_of", "silence_of", "trace"]

NETWORK = "the network"  # where nothing smaller can be named


@dataclass(frozen=True)
class Prepared:
    """A network ready for calibration: graph, sites, inputs of one call, keys of output neurons, notes."""

    model: GraphModule
    sites: list[Site]
    inputs: tuple[Any, ...]
    outputs: list[str]
    notes: list[str]


def trace(
    ann: nn.Module,
    inputs: tuple[Any, ...],
    demands: Sequence[Demand] = (),
    *,
    output_neurons: bool = False,
    graded: bool = True,
    relay: bool = False,
    skip: Sequence[str] = (),
    leaf: Sequence[Any] = (),
) -> Prepared:
    """Return the graph of ``ann`` with all sites that it will have; raise UnsupportedError with every obstacle.

    Args:
        ann: the trained network; it is copied, never changed.
        inputs: the inputs of one call, each [N, ...].
        demands: what the recipe asks of a network.
        output_neurons: add neurons behind the last layer, for readouts of spikes.
        graded: allow operations whose output is not spikes.
        relay: add neurons where a weight layer would receive sums or averages.
        skip: paths of modules that stay analog.
        leaf: types or paths of modules that are not traced into.
    """
    model = prepare(ann, inputs, skip, leaf, graded, demands)
    outputs = insert_output_neurons(model) if output_neurons else []
    notes = [f"A relay was added: {key}." for key in insert_relays(model)] if relay else []
    return Prepared(model, find_sites(model), tensors_of(inputs), outputs, notes)


def silence_of(model: GraphModule) -> str:
    """Return a warning for a prepared network without a spiking site, otherwise ""."""
    if find_sites(model):
        return ""
    activations = [node for node in model.graph.nodes if isinstance(operator_of(model, node), Activation)]
    kept = [node for node in activations if not graph.info(node).skip]
    if not kept:
        return "This network has no spiking neuron: all its activations are kept out by skip= or leaf=."
    names = ", ".join(graph.key_of(node) for node in kept[:3]) + (", ..." if len(kept) > 3 else "")
    return (
        f"This network has no spiking neuron: {names} {'is' if len(kept) == 1 else 'are'} no ReLU, and such functions "
        "stay analog. relay=True puts spiking neurons before the weight layers; or train with ReLU in their place."
    )


def examine(
    ann: nn.Module,
    inputs: tuple[Any, ...] | None,
    skip: Sequence[str],
    leaf: Sequence[Any],
    graded: bool,
    demands: Sequence[Demand] = (),
) -> tuple[GraphModule, list[Problem]]:
    """Return the graph of ``ann`` after all exact passes and everything that stands in the way of converting it."""
    model, reference = capture_and_compare(ann, inputs, leaf=leaf, skip=skip)
    tensors = None if inputs is None else tensors_of(inputs)
    refused: list[Problem] = []
    try:
        run_passes(model, tensors)
    except UnsupportedError as error:
        if not error.problems:
            raise
        refused = list(error.problems)  # the graph is complete all the same, so the rest can be listed too
    # A graph that is not rewritten cannot be run to see whether it keeps samples apart.
    obstacles = problems_of(model, None if refused else tensors, graded) + [
        each for demand in demands for each in demand.problems(model)
    ]
    known = {problem.path for problem in refused} | ({NETWORK} if refused else set())
    problems = refused + [problem for problem in obstacles if problem.path not in known]
    if not problems and reference is not None:
        changed = rewriting_problem(type(ann).__name__, model, reference)
        problems = [] if changed is None else [changed]
    return model, problems


def prepare(
    ann: nn.Module,
    inputs: tuple[Any, ...] | None,
    skip: Sequence[str] = (),
    leaf: Sequence[Any] = (),
    graded: bool = True,
    demands: Sequence[Demand] = (),
) -> GraphModule:
    """Return the captured graph of ``ann`` after all exact passes; raise UnsupportedError with every obstacle."""
    model, problems = examine(ann, inputs, skip, leaf, graded, demands)
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise UnsupportedError(f"{type(ann).__name__} cannot be converted:\n{listed}", tuple(problems))
    return model


def problems_of(model: GraphModule, inputs: tuple[Any, ...] | None, graded: bool) -> list[Problem]:
    """Return what stands in the way of converting a prepared graph."""
    problems: list[Problem] = []
    activations = 0
    for node in model.graph.nodes:
        operator = operator_of(model, node)
        if isinstance(operator, Problem):
            problems.append(operator)
        elif isinstance(operator, Activation):
            activations += 1
            if operator.kind is SiteKind.GRADED and not graded:
                problems.append(
                    Problem(
                        graph.key_of(node),
                        "this function is not positively homogeneous, so its output is graded, not spikes.",
                        "Allow it with graded=True, or train with ReLU in its place.",
                        graph.describe(node),
                    )
                )
            problems += _misfits(node)
    if inputs is not None:
        known = {problem.path for problem in problems}
        problems += [problem for problem in batch_problems(model, inputs) if problem.path not in known]
    if not activations and not problems:
        problems.append(
            Problem(
                NETWORK,
                "it has no activation, so there is nothing to convert.",
                "ReLU, ReLU6, clamp(min=0), LeakyReLU, SiLU and the like are found as modules, functions or methods; "
                "check skip= and leaf=.",
            )
        )
    return problems


def _misfits(node: Node) -> list[Problem]:
    """Return why an activation cannot be a function from tensors to one tensor, as far as shapes are known."""
    shape = graph.info(node).shape
    reasons = [
        f"its argument {graph.key_of(number)} is computed from the input's shape, so it is not a function of tensors."
        for number in node.all_input_nodes
        if number.op != "get_attr" and graph.info(number).is_constant
    ]
    if shape is not None and not isinstance(shape, torch.Size):
        reasons.append("it returns several values, and a function that is kept analog must return one tensor.")
    remedy = "Give constants and return one tensor, or keep the module around it whole with skip=."
    return [Problem(graph.key_of(node), reason, remedy, graph.describe(node)) for reason in reasons]


def find_sites(model: GraphModule) -> list[Site]:
    """Return the places that get a threshold, in graph order."""
    sites = []
    for node in model.graph.nodes:
        operator = operator_of(model, node)
        if isinstance(operator, Activation) and operator.kind is not SiteKind.GRADED:
            trained = operator.threshold, operator.neuron
            sites.append(Site(graph.key_of(node), str(node.target), operator.kind, operator.cap, *trained))
    return sites
