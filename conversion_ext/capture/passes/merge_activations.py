"""Fewer sites for the same function: every spiking neuron adds an error of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import nn
from torch.fx import GraphModule, Node

from conversion_ext.capture.passes.base import layer_of, layers
from conversion_ext.graph import info, note, refresh
from conversion_ext.graph.layers import MAX_POOLS
from conversion_ext.operators.signs import never_negative

__all__ = ["MergeActivations"]


class MergeActivations:
    """A ReLU of values that are not negative is deleted; one right after a max-pool moves before it.

    Both are exact: ``relu(x) = x`` for x >= 0, and ``relu(max(x)) = max(relu(x))``, also for a clipped ReLU, since
    both are monotone. Of two clipped ReLUs in a row one is left, with the smaller cap.
    """

    def run(self, model: GraphModule) -> None:
        """Apply the rules until none does."""
        while step := _step(model):
            step()
        refresh(model)

    def ensures(self, model: GraphModule) -> list[str]:
        """No rule applies any more."""
        return ["a ReLU is left that can be deleted or moved before a max-pool."] if _step(model) else []


def _step(model: GraphModule) -> Callable[[], None] | None:
    """Return a change that one of the rules allows, or None."""
    positive = never_negative(model)
    for node, module in layers(model, nn.ReLU, nn.Hardtanh):
        source = node.args[0]
        cap = _cap(module)
        if not isinstance(source, Node) or cap is None:
            continue
        alone = list(source.users) == [node]
        before = layer_of(model, source, nn.ReLU, nn.Hardtanh)
        inner = None if before is None else _cap(before)
        if (cap == math.inf and source in positive) or (inner is not None and inner <= cap):
            return partial(_bypass, model, node)
        if inner is not None and alone:
            return partial(_bypass, model, source)
        pool = layer_of(model, source, *MAX_POOLS)
        if pool is not None and alone and not pool.return_indices:
            return partial(_swap, source, node)
    return None


def _cap(module: nn.Module) -> float | None:
    """Return the upper end of a ReLU (inf) or clipped ReLU; None for a Hardtanh that does not start at 0."""
    if isinstance(module, nn.Hardtanh):
        return module.max_val if module.min_val == 0 else None
    return math.inf


def _bypass(model: GraphModule, node: Node) -> None:
    """Remove ``node`` and let its users read its input."""
    node.replace_all_uses_with(node.args[0])  # pyright: ignore[reportArgumentType] (its input, a node)
    model.graph.erase_node(node)


def _swap(pool: Node, relu: Node) -> None:
    """Turn relu(pool(x)) into pool(relu(x))."""
    relu.replace_all_uses_with(pool)
    pool.prepend(relu)
    relu.args, pool.args = (pool.args[0],), (relu,)
    source = relu.args[0]
    if isinstance(source, Node):
        note(relu, known=info(source).known, shape=info(source).shape)
