"""One graph run node by node over calibration data, each layer once: the ANN, or a spiking body over T steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.state import reset
from conversion_ext.nn.stateful import Memory
from conversion_ext.tuners.tensor_store import TensorStore, pack, unpack
from conversion_ext.types import Steps

__all__ = ["GraphRunner", "SpikingGraphRunner", "mean_of"]

INTEGERS = (torch.int8, torch.int32, torch.int64)  # what spikes of several, or of weights, are kept as


class GraphRunner:
    """One graph, run node by node on all parts of the data.

    The values of some nodes, here of all, are computed once and kept until the last node that reads them has run.
    """

    def __init__(self, model: GraphModule, store: TensorStore, parts: int) -> None:
        self.model, self.store, self.parts = model, store, parts
        nodes = list(model.graph.nodes)
        self.order = {node: index for index, node in enumerate(nodes)}
        self.inputs = graph.inputs_of(model)
        self.modules = {node: module for node in nodes if (module := graph.module_of(model, node)) is not None}
        self.remembers = {n for n, m in self.modules.items() if any(isinstance(part, Memory) for part in m.modules())}
        self.keeps = [node for node in nodes if self.is_kept(node)]
        self.last = self._last_readers(nodes)
        self.done = 0  # nodes of `keeps` before this index have run
        self.live: set[Node] = set()

    def is_kept(self, node: Node) -> bool:
        """Return whether the value of ``node`` is kept until its last reader has run."""
        return node.op.startswith("call")

    def is_read(self, node: Node) -> bool:
        """Return whether the value of a node that is kept is read at all."""
        return self.last[node] > 0

    def _last_readers(self, nodes: list[Node]) -> dict[Node, int]:
        """Return, for each node that is kept, the index of the last node whose computation reads its value."""
        kept, reads = set(self.keeps), dict[Node, set[Node]]()
        last = dict.fromkeys(self.keeps, 0)
        for node in nodes:
            reads[node] = {k for s in node.all_input_nodes for k in ({s} if s in kept else reads[s])}
            for source in reads[node]:
                last[source] = self.order[node]
        return last

    def advance(self, node: Node) -> None:
        """Compute what is kept, comes before ``node`` and is still to be read; drop what is not."""
        here, first = self.order[node], self.done
        while self.done < len(self.keeps) and self.order[self.keeps[self.done]] < here:
            self.done += 1
        needed = [kept for kept in self.keeps[first : self.done] if self.last[kept] >= here]
        for part in range(self.parts):
            known: dict[Node, Any] = {}
            for kept in needed:
                if (id(self), kept, part) not in self.store:
                    self.value(kept, part, known)
        for kept in [kept for kept in self.live if self.last[kept] < here]:
            self.live.remove(kept)
            for part in range(self.parts):
                self.drop(kept, part)

    def drop(self, node: Node, part: int) -> None:
        """Forget the value of a node."""
        self.store.pop((id(self), node, part))

    def value(self, node: Node, part: int, known: dict[Node, Any] | None = None) -> Any:
        """Return the value of ``node``, given that of the nodes in ``known``."""
        known = {} if known is None else known
        if node not in known:
            known[node] = self._look_up(node, part, known)
        return known[node]

    def _look_up(self, node: Node, part: int, known: dict[Node, Any]) -> Any:
        key = (id(self), node, part)
        if node.op == "placeholder":
            return self.store["sample", self.inputs.index(node), part]
        if key in self.store:
            return self.store[key]
        value = self.call(node, lambda source: self.value(source, part, known))
        if node in self.last and isinstance(value, Tensor):  # sizes, and the parts of a split, are computed anew
            self.store[key] = value
            self.live.add(node)
        return value

    def call(self, node: Node, value: Callable[[Node], Any]) -> Any:
        """Return what a node computes of the values of others."""
        if node not in self.remembers:
            return graph.call(self.model, node, value)
        reset(self.modules[node])
        result = graph.call(self.model, node, value)
        reset(self.modules[node])
        return result


class SpikingGraphRunner(GraphRunner):
    """A spiking graph over all T steps.

    Kept are the spikes of sites, in bits where they are binary, their sums over the steps, and the values of what else
    has a state or several readers. All the rest is linear, and computed when it is asked for: its mean over the steps
    of the mean input.
    """

    def __init__(self, model: GraphModule, store: TensorStore, parts: int, steps: Steps) -> None:
        self.steps = steps
        self.sites: dict[Node, SpikingSite] = dict(graph.modules_called(model, SpikingSite))
        super().__init__(model, store, parts)
        self.varying = graph.varying(model.graph, self.inputs[-1:])

    def is_kept(self, node: Node) -> bool:
        """Return whether the value of ``node`` is kept until its last reader has run."""
        return node.op.startswith("call") and (len(node.users) > 1 or node in self.remembers)

    def _look_up(self, node: Node, part: int, known: dict[Node, Any]) -> Any:
        if node is self.inputs[-1]:
            return self.steps
        if node not in self.sites:
            return super()._look_up(node, part, known)
        site, T = self.sites[node], self.steps.T
        if (id(self), node, part) not in self.store:
            (source,) = node.all_input_nodes[:1]
            reset(site)
            self.keep_spikes(node, part, site.spikes(self.value(source, part, known), self.steps))
            reset(site)
        spikes, dtype = self.store[id(self), node, part], site.threshold.dtype
        if spikes.dtype == torch.uint8:
            return site.emitted(unpack(spikes, T, dtype).flatten(0, 1), overwrite=True)
        return site.emitted(spikes.to(dtype) / self.steps.block, overwrite=True)

    def keep_spikes(self, node: Node, part: int, spikes: Tensor) -> None:
        """Keep the spikes [T*N, ...] that a site emits, and their mean over the steps."""
        site, steps = self.sites[node], spikes.unflatten(0, (self.steps.T, -1))
        self.live.add(node)
        self.store[id(self), "mean", node, part] = mean_of(steps)
        most = site.largest * self.steps.block
        if site.binary and self.steps.block == 1:
            kept = pack(steps)
        else:
            narrowest = next(dtype for dtype in INTEGERS if most <= torch.iinfo(dtype).max)
            kept = (spikes * self.steps.block).round().to(narrowest)
        self.store[id(self), node, part] = kept

    def drop(self, node: Node, part: int) -> None:
        """Forget the value of a node, and its mean."""
        super().drop(node, part)
        self.store.pop((id(self), "mean", node, part))

    def mean(self, node: Node, part: int, known: dict[Node, Any] | None = None) -> Any:
        """Return the mean of ``node`` over the steps, [N, ...], given that of the nodes in ``known``."""
        known = {} if known is None else known
        if node not in known:
            known[node] = self._mean(node, part, known)
        return known[node]

    def _mean(self, node: Node, part: int, known: dict[Node, Any]) -> Any:
        if node is self.inputs[-1]:
            return Steps(1, constant=True)
        if node not in self.varying:
            return self.value(node, part)
        key = (id(self), "mean", node, part)
        if node in self.sites and key in self.store:
            return self.sites[node].emitted(self.store[key])
        if node in self.remembers or (id(self), node, part) in self.store:
            return mean_of(self.value(node, part).unflatten(0, (self.steps.T, -1)))
        return self.call(node, lambda source: self.mean(source, part, known))


def mean_of(steps: Tensor) -> Tensor:
    """Return the mean [N, ...] of values of steps [T, N, ...], laid out in memory as one of them."""
    total = steps[0].clone()
    for step in steps[1:]:
        total += step
    return total.div_(len(steps))
