"""Cut a network into the part that does not depend on time and the rest."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch.fx import Graph, GraphModule, Node

from conversion_ext import graph
from conversion_ext.graph.layers import WEIGHTS
from conversion_ext.network.site import SpikingSite
from conversion_ext.simulation.padding import Padded, without_padding

# A split compiles two modules, longer than many a step. A body that changes or is copied is split anew.
_halves: WeakKeyDictionary[GraphModule, tuple[list[Any], tuple[GraphModule, GraphModule]]] = WeakKeyDictionary()


def halves(body: GraphModule) -> tuple[GraphModule, GraphModule]:
    """Return ``split(body)``, made once for the code of ``body`` and the modules and tensors that it names."""
    named = [graph.attribute_of(body, n) for n in body.graph.nodes if n.op in ("call_module", "get_attr")]
    now = [body.code, *named]
    seen, both = _halves.get(body, ([], None))
    if both is None or len(seen) != len(now) or any(a is not b for a, b in zip(seen, now, strict=True)):
        both = split(body)
        _halves[body] = now, both
    return both


def fresh_currents(main: GraphModule) -> dict[str, Any]:
    """Return {site: layer} of the sites whose input a weight layer makes for them alone; noted for the next call."""
    if "fresh_currents" not in main.meta:
        sites = [(site.key, node.all_input_nodes[0]) for node, site in graph.modules_called(main, SpikingSite)]
        alone = {key: graph.module_of(main, source) for key, source in sites if len(source.users) == 1}
        main.meta["fresh_currents"] = {
            key: layer for key, layer in alone.items() if isinstance(layer, (*WEIGHTS, Padded))
        }
    return main.meta["fresh_currents"]


def split(body: GraphModule) -> tuple[GraphModule, GraphModule]:
    """Return (prologue, main): main(*prologue(*inputs), steps) equals body(*inputs, steps) under constant current.

    The prologue is everything that the ``steps`` input does not reach. In the rest depthwise convolutions pad for
    themselves.
    """
    varying = graph.varying(body.graph, [graph.steps_of(body)]) - {graph.output_of(body)}
    static = [n for n in body.graph.nodes if n not in varying and n.op not in ("get_attr", "output")]
    crossing = [n for n in static if any(user in varying or user.op == "output" for user in n.users)]
    before, copies = Graph(), dict[Node, Node]()
    for node in body.graph.nodes:
        if node not in varying and node.op != "output":
            copies[node] = before.node_copy(node, copies.__getitem__)
    before.output(tuple(copies[node] for node in crossing))
    after, copies = Graph(), dict[Node, Node]()
    for node in crossing:
        copies[node] = after.placeholder(node.name)
    for node in body.graph.nodes:
        if node in varying or node.op in ("get_attr", "output"):
            copies[node] = after.node_copy(node, copies.__getitem__)
    return GraphModule(body, before), without_padding(GraphModule(body, after))
