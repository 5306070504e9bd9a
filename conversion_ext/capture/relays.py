"""Neurons that the ANN does not have: relays where a synapse would see analog values, and output neurons."""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.operators.activations import SignedRelay
from conversion_ext.operators.arithmetic import Sum
from conversion_ext.operators.base import Activation, Call, Operator, operator_of
from conversion_ext.operators.sites import SiteKind
from conversion_ext.operators.synapse import Synapse
from conversion_ext.types import Family

__all__ = ["insert_output_neurons", "insert_relays", "output_keys"]

SPIKES = (Family.BINARY, Family.SIGNED, Family.MULTI_LEVEL)
EMITS = {SiteKind.RELU: Family.BINARY, SiteKind.SIGNED: Family.SIGNED, SiteKind.GRADED: Family.GRADED}


def insert_relays(model: GraphModule) -> list[str]:
    """Put a relay behind every value that a synapse would see as sums, averages or graded; return the relays' keys.

    A value that cannot be negative gets a ReLU, hence a binary neuron; any other an identity that is encoded in
    signed spikes. All its consumers but the network's output see the relay: an identity shortcut carries spikes to
    its sum, where graded values do not arrive either. What is linear in the image stays analog: that current is the
    network's input; and so do the currents that synapses send to a sum.
    """
    families: dict[Node, Family] = {}
    positive: dict[Node, bool] = {}
    keys: list[str] = []
    for node in list(model.graph.nodes):
        value = _value(model, node, families, positive)
        if value is None:
            continue
        families[node], positive[node] = value
        if families[node] in SPIKES or not _travels(model, node, families[node]):
            continue
        module = nn.ReLU() if positive[node] else SignedRelay()
        keys.append(f"{graph.key_of(node)}.relay")
        relay = graph.insert_after(model, node, module, keys[-1])
        graph.note(relay, key=keys[-1])
        for user in list(relay.users):
            if user.op == "output":
                user.replace_input_with(relay, node)
        families[relay], positive[relay] = EMITS[SiteKind.RELU if positive[node] else SiteKind.SIGNED], positive[node]
    graph.refresh(model)
    return keys


def insert_output_neurons(model: GraphModule) -> list[str]:
    """Put a ReLU, hence a neuron, behind every output that is no activation yet; return the keys of the output sites.

    Their spikes are what a readout counts; an output below 0 stays silent.
    """
    output = graph.output_of(model)
    for node in list(output.all_input_nodes):
        if not _is_relu(model, node):
            key = f"{graph.key_of(node)}.output"
            neuron = graph.insert_after(model, node, nn.ReLU(), key)
            graph.note(neuron, key=key)
            for user in list(neuron.users):
                if user is not output:
                    user.replace_input_with(neuron, node)
    graph.refresh(model)
    return output_keys(model)


def output_keys(model: GraphModule) -> list[str]:
    """Return the keys of the ReLUs whose value is an output."""
    output = graph.output_of(model)
    return [graph.key_of(node) for node in output.all_input_nodes if _is_relu(model, node)]


def _is_relu(model: GraphModule, node: Node) -> bool:
    meaning = operator_of(model, node)
    return isinstance(meaning, Activation) and meaning.kind is SiteKind.RELU


def _value(
    model: GraphModule, node: Node, families: dict[Node, Family], positive: dict[Node, bool]
) -> tuple[Family, bool] | None:
    """Return what values ``node`` takes and whether none is negative; None if it depends on no activation."""
    meaning = operator_of(model, node)
    inputs = [source for source in node.all_input_nodes if source in families]
    if not isinstance(meaning, Operator) or type(meaning) is Operator:
        return None  # an obstacle that is reported later, or a size, parameter or output
    if isinstance(meaning, Activation):
        never_negative = meaning.kind is SiteKind.RELU or isinstance(graph.module_of(model, node), nn.Sigmoid)
        return EMITS[meaning.kind], never_negative
    if not inputs:
        return None
    call = Call(model, node, inputs, [], None, lambda _: None)
    known = len(inputs) == len([n for n in node.all_input_nodes if graph.info(n).is_data])
    never_negative = known and meaning.keeps_sign(node) and all(positive[source] for source in inputs)
    return meaning.family_out(call, [families[source] for source in inputs]), never_negative


def _travels(model: GraphModule, node: Node, family: Family) -> bool:
    """Return whether a synapse sees the value of ``node``, or it reaches a sum as a graded value."""
    kinds = (Synapse, Sum) if family is Family.GRADED else (Synapse,)
    return any(isinstance(operator_of(model, user), kinds) for user in node.users)
