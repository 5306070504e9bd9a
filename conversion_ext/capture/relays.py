"""Neurons that the ANN does not have: relays where a synapse would see analog values, and output neurons."""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.operators.activations import SignedRelay
from conversion_ext.operators.arithmetic import Sum
from conversion_ext.operators.base import Activation, NodeContext, Operator, operator_of
from conversion_ext.operators.signs import never_negative
from conversion_ext.operators.sites import SiteKind
from conversion_ext.operators.synapse import Synapse
from conversion_ext.types import SPIKES, Family

__all__ = ["insert_output_neurons", "insert_relays", "output_keys"]

EMITS = {SiteKind.RELU: Family.BINARY, SiteKind.SIGNED: Family.SIGNED, SiteKind.GRADED: Family.GRADED}


def insert_relays(model: GraphModule) -> list[str]:
    """Put a relay behind every value that a synapse would see as sums, averages or graded; return the relays' keys.

    A value that cannot be negative gets a ReLU, hence a binary neuron; any other an identity that is encoded in
    signed spikes. All its consumers but the network's output see the relay: an identity shortcut carries spikes to
    its sum, where graded values do not arrive either. What is linear in the image stays analog: that current is the
    network's input; and so do the currents that synapses send to a sum.
    """
    families: dict[Node, Family] = {}
    positive = never_negative(model)
    keys: list[str] = []
    for node in list(model.graph.nodes):
        family = _family(model, node, families)
        if family is None:
            continue
        families[node] = family
        if family in SPIKES or not _travels(model, node, family):
            continue
        module = nn.ReLU() if node in positive else SignedRelay()
        keys.append(f"{graph.key_of(node)}.relay")
        relay = graph.insert_after(model, node, module, keys[-1])
        graph.note(relay, key=keys[-1])
        for user in list(relay.users):
            if user.op == "output":
                user.replace_input_with(relay, node)
        families[relay] = EMITS[SiteKind.RELU if node in positive else SiteKind.SIGNED]
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
    operator = operator_of(model, node)
    return isinstance(operator, Activation) and operator.kind is SiteKind.RELU


def _family(model: GraphModule, node: Node, families: dict[Node, Family]) -> Family | None:
    """Return what values ``node`` takes; None if it depends on no activation."""
    operator = operator_of(model, node)
    inputs = [source for source in node.all_input_nodes if source in families]
    if not isinstance(operator, Operator) or type(operator) is Operator:
        return None  # an obstacle that is reported later, or a size, parameter or output
    if isinstance(operator, Activation):
        return EMITS[operator.kind]
    if not inputs:
        return None
    context = NodeContext(model, node, inputs, [], None)
    return operator.family_out(context, [families[source] for source in inputs])


def _travels(model: GraphModule, node: Node, family: Family) -> bool:
    """Return whether a synapse sees the value of ``node``, or it reaches a sum as a graded value."""
    kinds = (Synapse, Sum) if family is Family.GRADED else (Synapse,)
    return any(isinstance(operator_of(model, user), kinds) for user in node.users)
