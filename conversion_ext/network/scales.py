"""Scales that folding left on edges of a graph: where they are depends on the calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from conversion_ext import graph
from conversion_ext.nn.channel_scale import ChannelScale

__all__ = ["can_move", "move_scales", "scale_edges", "scale_name"]

Edges = Mapping[str, Sequence[str]]


def scale_name(source: str) -> str:
    """Return what a scale behind the node ``source`` is called, before a number is added."""
    return f"{source}_scale"


def scale_edges(body: GraphModule) -> dict[str, list[str]]:
    """Return {scale: [the node before it, the nodes behind it]} by name."""
    edges = {}
    for node, _ in graph.modules_called(body, ChannelScale):
        (source,) = node.all_input_nodes
        if str(node.target).startswith(scale_name(source.name)):
            edges[str(node.target)] = [source.name, *(user.name for user in node.users)]
    return edges


def can_move(body: GraphModule, edges: Edges) -> bool:
    """Return whether ``body`` has all nodes that ``edges`` name."""
    names = {node.name for node in body.graph.nodes}
    return all(names.issuperset(nodes) for nodes in edges.values())


def move_scales(body: GraphModule, edges: Edges, values: Mapping[str, Tensor]) -> None:
    """Take the scales of ``body`` away and put scales of ones, shaped as ``values``, on ``edges``."""
    before = scale_edges(body)
    for node, _ in graph.modules_called(body, ChannelScale):
        if str(node.target) in before:
            node.replace_all_uses_with(node.all_input_nodes[0])
            body.graph.erase_node(node)
    nodes = {node.name: node for node in body.graph.nodes}
    order = {name: i for i, name in enumerate(nodes)}
    like = next((b for b in body.buffers() if b.is_floating_point()), torch.empty(0))
    for name, (source, *users) in edges.items():
        body.add_module(name, ChannelScale(like.new_ones(values[name].shape)))
        first = nodes[min(users, key=order.__getitem__)]
        with body.graph.inserting_before(first):
            scale = body.graph.call_module(name, (nodes[source],))
        graph.carry(nodes[source], scale, key=f"{graph.key_of(nodes[source])} -> {graph.key_of(first)}")
        for user in users:
            nodes[user].replace_input_with(nodes[source], scale)
    graph.refresh(body)
