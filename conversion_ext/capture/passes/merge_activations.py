"""Fewer sites for the same function: every spiking neuron adds an error of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from conversion_ext.capture.passes.base import layer_of, layers
from conversion_ext.graph import info, note, refresh
from conversion_ext.graph.layers import MAX_POOLS

__all__ = ["MergeActivations"]

_POSITIVE = (nn.ReLU, nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softplus)
_KEEP_SIGN = (*MAX_POOLS, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
              nn.AdaptiveAvgPool3d, nn.Flatten, nn.Unflatten, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d,
              nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)  # fmt: skip
_MOVES = {"view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "chunk", "split", "unbind",
          "expand", "repeat", "mean", "sum"}  # fmt: skip


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
    positive = _non_negative(model)
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


def _non_negative(model: GraphModule) -> set[Node]:
    """Return the nodes whose value is known to have no negative element."""
    found: set[Node] = set()
    for node in model.graph.nodes:
        if node.op == "call_module":
            clip = layer_of(model, node, nn.Hardtanh)
            upsample = layer_of(model, node, nn.Upsample)
            makes = layer_of(model, node, *_POSITIVE) is not None or (clip is not None and clip.min_val >= 0)
            keeps = layer_of(model, node, *_KEEP_SIGN) or (upsample is not None and upsample.mode != "bicubic")
            positive = makes or (keeps and node.args[0] in found)
        else:
            positive = node.op in ("call_function", "call_method") and _function_keeps_sign(node, found)
        if positive:
            found.add(node)
    return found


def _function_keeps_sign(node: Node, found: set[Node]) -> bool:
    """Return whether a function or method of values that are not negative, ``found``, gives such values."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    source: Any = next(iter(node.args), None)
    if node.target is F.pad:
        value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
        return source in found and (value is None or (isinstance(value, int | float) and value >= 0))
    if name in ("add", "mul"):
        pair: tuple[Any, ...] = node.args if len(node.args) == 2 and not node.kwargs else (None,)
        return all(part in found or (isinstance(part, int | float) and part >= 0) for part in pair)
    if name in ("cat", "concat", "stack"):
        return bool(node.all_input_nodes) and all(part in found for part in node.all_input_nodes)
    return (name in _MOVES or name == "getitem") and source in found
