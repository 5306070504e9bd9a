"""Fold thresholds into weights by assigning a unit to every tensor of the graph."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.conversion.memory_format import channels_last
from conversion_ext.errors import Problem, UnsupportedError
from conversion_ext.exact import bytes_of
from conversion_ext.graph.shapes import propagate
from conversion_ext.network.scales import scale_name
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.network.state import reset
from conversion_ext.nn.channel_scale import ChannelScale
from conversion_ext.operators.base import NodeContext, Operator, compress, context_of, ones, operator_of
from conversion_ext.types import Steps

__all__ = ["fold", "folded"]


def folded(snn: SpikingNetwork, inputs: Sequence[Any]) -> SpikingNetwork:
    """Return a copy of ``snn``, converted with ``fold=False``, whose weights hold its thresholds as they are now."""
    new = copy.deepcopy(snn)
    notes = fold(new.body, inputs)
    channels_last(new.body)
    new.record = replace(snn.record, folded=True, notes=(*snn.record.notes, *notes))
    reset(new)
    return new


def fold(body: GraphModule, inputs: Sequence[Any]) -> list[str]:
    """Rewrite ``body`` in place so that sites are bare neurons of threshold 1; return notes.

    Every tensor gets a unit per channel: a site's input and output have unit lambda, weights absorb
    ``unit_in / unit_out``, all operands of a sum take the sum's unit, and outputs have unit 1. Where the two ends
    of an edge differ a :class:`ChannelScale` stays: on an identity shortcut that is lambda_in / lambda_out
    (Hu et al., 2021). ``inputs`` is an example, of which one sample is run to learn the shapes.
    """
    propagate(body, (*inputs, Steps(1)), values=False)
    data = [node for node in body.graph.nodes if graph.info(node).is_data]
    contexts = {node: context_of(body, node) for node in data}
    operators = {node: _operator(body, node) for node in data}
    requested = _requests(body, contexts, operators, _free_units(contexts, operators))
    units: dict[Node, Any] = {}
    folded: dict[Node, nn.Module] = {}
    scales: dict[tuple[Node, bytes], Node] = {}
    for node, context in contexts.items():
        operator = operators[node]
        have = [units.get(source) for source in context.inputs]
        if node.op == "placeholder":
            out = ones(context.out_shape)
        else:
            out = operator.output_unit(context, have, requested.get(node))
        needed = operator.input_units(context, have, out)
        for source, unit, need in zip(context.inputs, have, needed, strict=True):
            if isinstance(unit, Tensor) and need is not None and not _equal(unit, need):
                _scale_edge(body, source, node, unit / need, scales)
        effective = [h if n is None else n for h, n in zip(have, needed, strict=True)]
        module = operator.fold(context, effective, out)
        if module is not None:
            folded[node] = module
        units[node] = out
    output = graph.output_of(body)
    for source in output.all_input_nodes:
        unit = units.get(source)
        if isinstance(unit, Tensor) and not _equal(unit, ones(unit.shape)):
            _scale_edge(body, source, output, unit, scales)
    notes = _install(body, folded)
    graph.refresh(body)
    return notes


def _operator(body: GraphModule, node: Node) -> Operator:
    operator = operator_of(body, node)
    if isinstance(operator, Problem):
        raise UnsupportedError(str(operator), (operator,))
    return operator


def _free_units(contexts: Mapping[Node, NodeContext], operators: Mapping[Node, Operator]) -> dict[Node, Any]:
    """Return the units that are fixed before anybody requests one: those that follow from sites and inputs alone."""
    free: dict[Node, Any] = {}
    for node, context in contexts.items():
        if node.op == "placeholder":
            free[node] = ones(context.out_shape)
        else:
            free[node] = operators[node].free_unit(context, [free[source] for source in context.inputs])
    return free


def _requests(
    body: GraphModule,
    contexts: Mapping[Node, NodeContext],
    operators: Mapping[Node, Operator],
    free: Mapping[Node, Any],
) -> dict[Node, Any]:
    """Return, per node, the unit that its consumers request (nan: none), walking from the outputs back."""
    requested: dict[Node, Any] = {}
    for node in reversed(body.graph.nodes):
        if node.op == "output":
            for source in node.all_input_nodes:
                if graph.info(source).is_tensor:
                    _ask(requested, source, ones(graph.info(source).shape))
        elif node in contexts:
            # Without a request a node keeps its free unit, which then is what its operands should have.
            requested.setdefault(node, free[node])
            context = contexts[node]
            wishes = operators[node].requested_units(context, requested[node])
            for source, wish in zip(context.inputs, wishes, strict=True):
                _ask(requested, source, wish)
    return {node: wish for node, wish in requested.items() if wish is not None}


def _ask(requested: dict[Node, Any], node: Node, wish: Any) -> None:
    """Add a request; where two disagree the first one stays."""
    old = requested.get(node)
    if old is None:
        requested[node] = wish
    elif isinstance(wish, tuple):
        requested[node] = tuple(_merge(a, b) for a, b in zip(old, wish, strict=True))
    elif wish is not None:
        requested[node] = _merge(old, wish)


def _merge(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new if old is None else old
    return compress(torch.where(old.isnan(), new, old))


def _equal(a: Tensor, b: Tensor) -> bool:
    a, b = torch.broadcast_tensors(a, b)
    return bool((a == b).all())


def _scale_edge(
    body: GraphModule, source: Node, user: Node, factor: Tensor, scales: dict[tuple[Node, bytes], Node]
) -> None:
    """Put a ChannelScale on the edge source -> user, one for all edges that need the same."""
    factor = compress(factor)
    key = (source, factor.numpy().tobytes())
    if key not in scales:
        like = next((b for b in body.buffers() if b.is_floating_point()), factor)
        module = ChannelScale(factor.to(like.device, like.dtype))
        name = graph.add_module(body, scale_name(source.name), module)
        with body.graph.inserting_before(user):
            scales[key] = body.graph.call_module(name, (source,))
        graph.carry(source, scales[key], key=f"{graph.key_of(source)} -> {graph.key_of(user)}")
    user.replace_input_with(source, scales[key])


def _install(body: GraphModule, folded: Mapping[Node, nn.Module]) -> list[str]:
    """Put the folded modules in place; weights that were tied and still are equal stay tied."""
    parameters = [
        (node, module, name, getattr(body.get_submodule(str(node.target)), name, None))
        for node, module in folded.items()
        for name, _ in module.named_parameters(recurse=False)
    ]
    times = Counter(id(original) for *_, original in parameters if original is not None)
    tied: dict[tuple[int, bytes], nn.Parameter] = {}
    uses: dict[int, list[tuple[str, nn.Parameter]]] = {}
    for node, module, name, original in parameters:
        if times[id(original)] < 2:
            continue
        parameter = getattr(module, name)
        shared = tied.setdefault((id(original), bytes_of(parameter)), parameter)
        setattr(module, name, shared)
        uses.setdefault(id(original), []).append((f"{graph.key_of(node)}.{name}", shared))
    for node, module in folded.items():
        owner, _, name = str(node.target).rpartition(".")
        setattr(body.get_submodule(owner), name, module)
    return [
        f"Tied weights {', '.join(name for name, _ in users)} are used in different units and were cloned."
        for users in uses.values()
        if len({id(parameter) for _, parameter in users}) > 1
    ]
