"""How many sites lie in front of each site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.network.site import SpikingSite

__all__ = ["depths"]


def depths(body: GraphModule, weight: Callable[[SpikingSite], Any] = lambda site: 1) -> dict[str, Any]:
    """Return {site key: sites on the longest chain from an input to the site, itself counted} in graph order.

    ``weight`` may count a site as more or less than one.
    """
    depth_of: dict[str, Any] = {}
    chains: dict[Node, Any] = {}
    for node in body.graph.nodes:
        chains[node] = max((chains[source] for source in node.all_input_nodes), default=0)
        site = graph.module_of(body, node)
        if isinstance(site, SpikingSite):
            chains[node] += weight(site)
            depth_of[site.key] = chains[node]
    return depth_of
