"""When the first step of each value of a network arrives, and clocks where values of different times meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.errors import UnsupportedError, require
from conversion_ext.network.lookahead import Clock, Delay, LookAhead
from conversion_ext.network.pace import set_pace
from conversion_ext.network.site import SpikingSite
from conversion_ext.neurons import SignedEncoder
from conversion_ext.nn.stateful import Stateful
from conversion_ext.operators.arithmetic import Sum
from conversion_ext.operators.base import operator_of

__all__ = ["latency_of", "set_clocks"]


def set_clocks(body: GraphModule, T: int | None) -> None:
    """Let the sites of ``body`` look ahead as their neurons do, in runs of T steps, and all else keep time with them.

    A site lags ``neuron.ahead`` steps behind the latest of its inputs; one that sees the constant input starts with
    it. Of the operands of a sum those that arrive early are read as much further ahead; where values are joined
    otherwise they wait. Nothing of this is done where no neuron looks ahead.
    """
    sites = dict(graph.modules_called(body, SpikingSite))
    if not any(site.spec.ahead or site.spec.weights for site in sites.values()):
        return
    _check(list(sites.values()))
    lags = _lags(body, sites)
    weights = next((site.spec.weights for site in sites.values() if site.spec.weights), None)
    for node, site in sites.items():
        d, code = (0, None) if site.static_input else (site.spec.ahead, site.spec.weights)
        site.clock = LookAhead(d, code, total=site.spec.weights is not None, lag=lags[node] - d, T=T)
    _Joins(body, lags, weights, T).insert()
    if weights:
        set_pace(body, weights)
    graph.refresh(body)


def _check(sites: Sequence[SpikingSite]) -> None:
    signed = [site.key for site in sites if isinstance(site.spec, SignedEncoder) and not site.spec.weights]
    require(
        not signed or not any(site.spec.weights for site in sites),
        f"{', '.join(signed)}: signed encoders send rates, which cannot follow spikes weighted in time; convert with "
        "Recipe(signed_encoder=WeightedEncoder()), or with a recipe of another family.",
        UnsupportedError,
    )


def latency_of(body: GraphModule) -> int:
    """Return by how many steps the latest site or output of a network lags behind its input."""
    clocks = (module for module in body.modules() if isinstance(module, LookAhead))
    return max((clock.lag + clock.d for clock in clocks), default=0)


def _lags(body: GraphModule, sites: Mapping[Node, SpikingSite]) -> dict[Node, int]:
    """Return {node: ticks before its first step}, without those that do not depend on time."""
    lags: dict[Node, int] = {}
    for node in body.graph.nodes:
        known = [lags[source] for source in node.all_input_nodes if source in lags]
        site = sites.get(node)
        if site is not None:
            lags[node] = 0 if site.static_input else max(known) + site.spec.ahead
        elif known:
            lags[node] = max(known)
        elif isinstance(graph.module_of(body, node), Stateful):
            lags[node] = 0  # a pool of the input
    return lags


class _Joins:
    """The places where values meet that arrive at different times, and the outputs of the network."""

    def __init__(
        self, body: GraphModule, lags: Mapping[Node, int], weights: tuple[int, ...] | None, T: int | None
    ) -> None:
        self.body, self.lags, self.weights, self.T = body, lags, weights, T
        self.steps = graph.steps_of(body)
        self.made: dict[tuple[Node, int, bool], Node] = {}

    def insert(self) -> None:
        """Put a clock on every edge that needs one."""
        for node in list(self.body.graph.nodes):
            sources = [n for n in node.all_input_nodes if n in self.lags and graph.info(n).is_tensor]
            latest = max((self.lags[source] for source in sources), default=0)
            sums = isinstance(operator_of(self.body, node), Sum)
            for source in sources:
                early = latest - self.lags[source]
                if node.op == "output":
                    node.replace_input_with(source, self.clocked(source, 0, True))
                elif early:
                    node.replace_input_with(source, self.clocked(source, early, sums))

    def clocked(self, source: Node, early: int, reads: bool) -> Node:
        """Return ``source`` read ``early`` steps ahead, or else held for as many."""
        key = (source, early, reads)
        if key not in self.made:
            lag = self.lags[source]
            clock: Clock = LookAhead(early, self.weights, lag=lag, T=self.T) if reads else Delay(early, lag, self.T)
            name = graph.add_module(self.body, f"{source.name}_in_time", clock)
            with self.body.graph.inserting_after(source):
                new = self.body.graph.call_module(name, (source, self.steps))
            graph.carry(source, new, key=f"{graph.key_of(source)}, {early} steps {'ahead' if reads else 'late'}")
            self.made[key] = new
        return self.made[key]
