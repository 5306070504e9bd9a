"""A converted network beside the facts of a chip: what rules ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Node

from conversion_ext import graph
from conversion_ext.errors import Problem
from conversion_ext.exchange.chips import Chip
from conversion_ext.graph.layers import WEIGHTS
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.spiking_network import SpikingNetwork

__all__ = ["Rule", "Subject", "is_mean", "pair", "problem"]


@dataclass(frozen=True)
class Subject:
    """A folded network on a chip, with inputs of which its potentials are known.

    ``potentials``: {site: (least, greatest)} in thresholds, over some inputs and steps; ``x`` are the inputs.
    """

    snn: SpikingNetwork
    chip: Chip
    x: Tensor
    potentials: dict[str, tuple[float, float]]

    def nodes(self) -> Iterator[tuple[Node, Any]]:
        """Iterate over the calls of the body with their modules, None for functions; the time axis is left out."""
        steps = graph.steps_of(self.snn.body)
        for node in self.snn.body.graph.nodes:
            if node.op.startswith("call") and node is not steps:
                yield node, graph.module_of(self.snn.body, node)

    def layers(self) -> Iterator[tuple[Node, Any]]:
        """Iterate over the weight layers."""
        return ((node, module) for node, module in self.nodes() if isinstance(module, WEIGHTS))

    def sites(self) -> Iterator[tuple[Node, SpikingSite]]:
        """Iterate over the neurons."""
        return ((node, module) for node, module in self.nodes() if isinstance(module, SpikingSite))


Rule = Callable[[Subject], Iterator[Problem]]
"""Names every breach of one rule."""


def problem(node: Node, reason: str, remedy: str) -> Problem:
    """Return a breach at ``node``."""
    return Problem(graph.key_of(node), reason, remedy, graph.describe(node))


def is_mean(node: Node, module: Any) -> bool:
    """Return whether ``node`` averages by a function or method."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return module is None and (name == "mean" or "avg_pool" in name)


def pair(value: Any) -> tuple[int, ...]:
    """Return a size as two numbers."""
    return (value, value) if isinstance(value, int) else tuple(value)
