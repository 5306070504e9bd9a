"""Parts of a network between which only one value passes, and how to run one of them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from conversion_ext import graph
from conversion_ext.network.site import SpikingSite
from conversion_ext.operators.base import operator_of
from conversion_ext.operators.synapse import Synapse

__all__ = ["Block", "blocks_of"]


@dataclass(frozen=True)
class Block:
    """The nodes of a graph behind ``start`` (None: from the inputs on) up to ``end``, which ``run`` computes."""

    model: GraphModule
    start: Node | None
    nodes: tuple[Node, ...]

    @property
    def end(self) -> Node:
        """The node whose value the block computes."""
        return self.nodes[-1]

    def run(self, known: Mapping[Node, Any]) -> Any:
        """Return the value of ``end`` for those of the nodes that come before the block."""
        values = dict(known)
        for node in self.nodes:
            if node in values:
                continue
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "get_attr":
                values[node] = graph.attribute_of(self.model, node)
            elif node.op == "call_module":
                values[node] = self.model.get_submodule(str(node.target))(*args, **kwargs)
            elif node.op == "call_method":
                values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return values[self.end]


def blocks_of(ann: GraphModule, body: GraphModule) -> list[tuple[Block, Block]]:
    """Return the blocks of a spiking ``body`` and of the ANN's graph that answer to each other, in order.

    A block ends where one value alone passes on, in both graphs, and a spiking site has come: at a site, or in front of
    a weight layer. So a residual block is one, and so is a linear bottleneck. What follows the last site is one, too.
    """
    there, shared = _passages(ann), {graph.key_of(node) for node in _passages(body)}
    keys = {graph.key_of(node): node for node in there if graph.key_of(node) in shared}
    places = {graph.key_of(node): node for node in _passages(body) if graph.key_of(node) in keys}
    ends = _ends(body, list(places.values()))
    return list(
        zip(
            _blocks(body, ends),
            _blocks(ann, [keys[graph.key_of(node)] for node in ends]),
            strict=True,
        )
    )


def _passages(model: GraphModule) -> list[Node]:
    """Return the nodes behind which nothing else that was computed before is read."""
    nodes = [node for node in model.graph.nodes if node.op not in ("get_attr", "output") and not _is_steps(model, node)]
    order = {node: index for index, node in enumerate(model.graph.nodes)}
    last = {node: max((order[user] for user in node.users), default=-1) for node in nodes}
    passages, read = [], -1  # up to where earlier nodes are read
    for node in nodes:
        if node.op != "placeholder" and read <= order[node] < last[node]:
            passages.append(node)
        read = max(read, last[node])
    return passages


def _is_steps(model: GraphModule, node: Node) -> bool:
    """Return whether ``node`` is the number of steps, which is no value of the network."""
    return node.op == "placeholder" and any(
        isinstance(graph.module_of(model, user), SpikingSite) and user.args[-1] is node for user in node.users
    )


def _ends(body: GraphModule, passages: Sequence[Node]) -> list[Node]:
    """Return those of the passages at which a block ends."""
    order = {node: index for index, node in enumerate(body.graph.nodes)}
    sites = [order[node] for node, _ in graph.modules_called(body, SpikingSite)]
    ends, before = list[Node](), -1
    for index, node in enumerate(passages):
        is_site = isinstance(graph.module_of(body, node), SpikingSite)
        reads = any(isinstance(operator_of(body, user), Synapse) for user in node.users)
        spiking = any(before < place <= order[node] for place in sites)
        if (spiking and (is_site or reads)) or (index == len(passages) - 1 and sites and order[node] > sites[0]):
            ends.append(node)
            before = order[node]
    return ends


def _blocks(model: GraphModule, ends: Sequence[Node]) -> list[Block]:
    nodes, blocks, start = list(model.graph.nodes), list[Block](), None
    order = {node: index for index, node in enumerate(nodes)}
    for end in ends:
        first = 0 if start is None else order[start] + 1
        inner = [node for node in nodes[first : order[end] + 1] if node.op != "placeholder"]
        constants = [node for node in nodes[:first] if node.op == "get_attr"]  # which may lie before the block
        blocks.append(Block(model, start, (*constants, *inner)))
        start = end
    return blocks
