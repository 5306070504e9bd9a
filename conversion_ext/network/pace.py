"""The weights of the steps of a run of weighted spikes, for everything that is no spike."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.graph.values import map_sizes, map_tensors
from conversion_ext.network.lookahead import LookAhead
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.time import ExpandTime, PacedConstant
from conversion_ext.neurons import SignedEncoder
from conversion_ext.nn.differential import Differential
from conversion_ext.nn.matrix_product import MatrixProduct
from conversion_ext.nn.stateful import Stateful
from conversion_ext.operators.base import compress
from conversion_ext.types import Steps

__all__ = ["set_pace"]

OF_SUMS = (Differential, MatrixProduct)


def set_pace(body: GraphModule, weights: tuple[int, ...]) -> None:
    """Let functions of sums know that the first spikes of a run tell more of it than the last.

    After t of T steps spikes of ``weights`` w have carried ``p_t = T (w_1 + ... + w_t) / (w_1 + ... + w_T)`` steps of a
    mean. So a function of the mean divides by p_t in the place of t, and what does not depend on time arrives in shares
    ``p_t - p_{t-1}``; so do biases, in front of whatever adds them up. After T steps nothing of this matters, since
    p_T = T: it makes the values in between what they should be.
    """
    pace = tuple(worth * len(weights) / sum(weights) for worth in accumulate(weights))
    paced = [module for module in body.modules() if isinstance(module, (*OF_SUMS, ExpandTime))]
    for module in paced:
        module.pace = pace
    if any(isinstance(module, OF_SUMS) for module in paced):
        _pace_constants(body, pace)


def _pace_constants(body: GraphModule, pace: tuple[float, ...]) -> None:
    """Put a :class:`PacedConstant` in front of everything that adds up values with a constant part."""
    constants = _constants(body)
    steps = graph.steps_of(body)
    made: dict[Node, Node] = {}
    for node in list(body.graph.nodes):
        if not _adds_up(graph.module_of(body, node)):
            continue
        for source in node.all_input_nodes:
            constant = constants.get(source)
            if not isinstance(constant, Tensor) or not bool(constant.any()):
                continue
            if source not in made:
                name = graph.add_module(body, f"{source.name}_paced", PacedConstant(compress(constant), pace))
                with body.graph.inserting_after(source):
                    made[source] = body.graph.call_module(name, (source, steps))
                graph.carry(source, made[source], key=f"{graph.key_of(source)}, constant part")
            node.replace_input_with(source, made[source])


def _adds_up(module: Any) -> bool:
    """Return whether a module works on sums over time, and has no decisions calibrated for what arrives."""
    return isinstance(module, (*OF_SUMS, LookAhead)) or (
        isinstance(module, SpikingSite) and isinstance(module.spec, SignedEncoder) and not module.static_input
    )


def _constants(body: GraphModule) -> dict[Node, Any]:
    """Return what each node that varies in time gives at every step without spikes; infinite masks count as 0."""
    values: dict[Node, Any] = {}
    varying: set[Node] = set()
    for node in body.graph.nodes:
        module, shape = graph.module_of(body, node), graph.info(node).shape
        starts = isinstance(module, (SpikingSite, Stateful, LookAhead, ExpandTime))
        varies = bool(varying.intersection(node.all_input_nodes))
        if starts or varies:
            varying.add(node)
        if starts or (shape is not None and not varies):
            values[node] = map_sizes(shape, lambda sizes: _like(body, sizes))
        elif node.op == "placeholder":
            values[node] = Steps(1)
        elif node.op != "output":
            with torch.no_grad():
                value = graph.call(body, node, values.__getitem__)
            values[node] = map_tensors(value, _finite)
    return {node: value for node, value in values.items() if node in varying}


def _finite(value: Tensor) -> Tensor:
    """Return a value with 0 in the place of what is infinite."""
    return value.nan_to_num(posinf=0.0, neginf=0.0) if value.is_floating_point() else value


def _like(body: GraphModule, sizes: torch.Size) -> Tensor:
    """Return zeros in the dtype and where the parameters of ``body`` are."""
    like = next((p for p in body.parameters() if p.is_floating_point()), torch.zeros(()))
    return torch.zeros(sizes, dtype=like.dtype, device=like.device)
