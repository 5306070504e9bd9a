"""Spiking relays: neurons added where a synapse would otherwise see analog values."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.operators.activations import SignedRelay
from conversion_ext.operators.base import Activation, Call, Operator, operator_of
from conversion_ext.operators.synapse import Synapse
from conversion_ext.types import Family, SiteKind

__all__ = ["insert_relays"]

SPIKES = (Family.BINARY, Family.SIGNED, Family.MULTI_LEVEL)
EMITS = {SiteKind.RELU: Family.BINARY, SiteKind.SIGNED: Family.SIGNED, SiteKind.GRADED: Family.GRADED}


def insert_relays(model: GraphModule) -> list[str]:
    """Put a relay before every synapse that would see sums, averages or graded values; return the relays' keys.

    A value that cannot be negative gets a ReLU, hence a binary neuron; any other an identity that is encoded in
    signed spikes. What is linear in the image stays analog: that current is the network's input. Identity
    shortcuts reach their sum through a ChannelScale, a depthwise synapse that sees spikes, and need none.
    """
    families, positive = _values(model)
    relays: dict[Node, Node] = {}
    for node in list(model.graph.nodes):
        if not isinstance(operator_of(model, node), Synapse):
            continue
        source = node.args[0]
        if not isinstance(source, Node) or families.get(source, Family.BINARY) in SPIKES:
            continue
        if source not in relays:
            module = nn.ReLU() if positive[source] else SignedRelay()
            key = f"{graph.key_of(source)}.relay"
            name = graph.add_module(model, key, module)
            with model.graph.inserting_before(node):
                relays[source] = model.graph.call_module(name, (source,))
            relays[source].meta.update({"key": key, "shape": source.meta.get("shape"), "line": graph.describe(source)})
        node.replace_input_with(source, relays[source])
    graph.refresh(model)
    return [graph.key_of(relay) for relay in relays.values()]


def _values(model: GraphModule) -> tuple[Mapping[Node, Family], Mapping[Node, bool]]:
    """Return, for every node that depends on an activation, what values it takes and whether none is negative."""
    families: dict[Node, Family] = {}
    positive: dict[Node, bool] = {}
    for node in model.graph.nodes:
        meaning = operator_of(model, node)
        inputs = [source for source in node.all_input_nodes if source in families]
        if not isinstance(meaning, Operator) or type(meaning) is Operator:
            continue  # an obstacle that is reported later, or a size, parameter or output
        if isinstance(meaning, Activation):
            families[node] = EMITS[meaning.kind]
            positive[node] = meaning.kind is SiteKind.RELU or isinstance(graph.module_of(model, node), nn.Sigmoid)
        elif inputs:
            call = Call(model, node, inputs, [], None, lambda _: None)
            families[node] = meaning.family_out(call, [families[source] for source in inputs])
            known = len(inputs) == len([n for n in node.all_input_nodes if n.meta.get("shape") is not None])
            positive[node] = known and meaning.keeps_sign(node) and all(positive[source] for source in inputs)
    return families, positive

