"""Spikes that take steps to arrive, as synapses of chips have it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from conversion_ext import graph
from conversion_ext.backends import get_backend
from conversion_ext.errors import require
from conversion_ext.graph.layers import WEIGHTS
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.nn.stateful import Memory
from conversion_ext.types import Steps

__all__ = ["SynapticDelay", "delayed"]


class SynapticDelay(Memory):
    """Hand on what came ``d`` steps ago, and zeros before that; with ``static`` a constant current passes at once.

    Called as ``module(x, Steps(T))`` with x [T*N, ...], or [N, ...] for a constant current.
    """

    state_names = ("held",)
    held: Tensor | None  # [N, d, ...]

    def __init__(self, d: int, static: bool) -> None:
        super().__init__()
        self.d, self.static = d, static

    def forward(self, x: Tensor, steps: Steps) -> Tensor:
        """Return the inputs of the layer behind it, of the shape of x."""
        if self.static and steps.constant:
            return x
        x_seq = x.unflatten(0, (steps.T, -1))
        held = x_seq.new_zeros(self.d, *x_seq.shape[1:]) if self.held is None else self.held.transpose(0, 1)
        known = torch.cat((held, x_seq))
        self.held = known[steps.T :].transpose(0, 1)
        return known[: steps.T].flatten(0, 1)

    def extra_repr(self) -> str:
        """Show the steps."""
        return f"d={self.d}"


def delayed(snn: SpikingNetwork, d: int) -> SpikingNetwork:
    """Return ``snn`` with ``d`` steps in front of every weight layer, in a graph of its own; modules are shared.

    Biases are no spikes and charge neurons from the first step on; so does a constant current, which chips have as
    biases. Layer n hears of the input ``n d`` steps late.
    """
    whole = isinstance(d, int) and not isinstance(d, bool) and d >= 1
    require(whole, f"delay_per_layer={d!r}: give a number of steps >= 1, or 0 for none.")
    clocked = [site.key for site in snn.sites().values() if site.clock is not None]
    require(
        not clocked,
        f"delay_per_layer={d}: {', '.join(clocked[:3])} look ahead, and their clocks know of no other delay; take a "
        "recipe without look-ahead.",
    )
    body = _copy(snn.body)
    steps = graph.steps_of(body)
    varying = graph.varying(body.graph, [steps])
    made: dict[Node, Node] = {}
    for node, _ in list(graph.modules_called(body, *WEIGHTS)):
        (source,) = (n for n in node.all_input_nodes if n is not steps)
        if source not in made:
            delay = SynapticDelay(d, source not in varying)
            name = graph.add_module(body, f"{source.name}_delayed", delay)
            with body.graph.inserting_before(node):  # the first layer that reads it
                made[source] = body.graph.call_module(name, (source, steps))
            graph.carry(source, made[source], key=f"{graph.key_of(source)}, {d} steps late")
        node.replace_input_with(source, made[source])
    graph.refresh(body)
    network: Any = get_backend(snn.record.backend).root(SpikingNetwork)(body, snn.record)
    return network.train(snn.training)


def _copy(body: GraphModule) -> GraphModule:
    """Return a graph that may be changed over the modules of ``body``."""
    new, copies = Graph(), dict[Node, Node]()
    for node in body.graph.nodes:
        copies[node] = new.node_copy(node, copies.__getitem__)
    return GraphModule(body, new)
