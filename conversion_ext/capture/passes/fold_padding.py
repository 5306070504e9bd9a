"""Zeros padded by a module or a call of their own are padded by the convolutions behind it, which do so for nothing."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from conversion_ext.capture.passes.base import layer_of
from conversion_ext.graph import info, refresh
from conversion_ext.graph.layers import CONSTANT_PADS, CONVOLUTIONS, zeros_around

__all__ = ["FoldPadding"]


class FoldPadding:
    """As many zeros on both sides of what convolutions read are padding of theirs.

    That holds where they alone read the padded value, and pad with zeros or not at all. Unequal sides, other constants
    and negative widths stay as they are. Every convolution must have one call site.
    """

    def run(self, model: GraphModule) -> None:
        """Let the readers pad more, and read what is not padded."""
        for node in reversed(list(model.graph.nodes)):  # of two in a row, the second goes first
            readers = _readers(model, node)
            for layer, padding in readers:
                layer.padding = padding
            if readers:
                node.replace_all_uses_with(node.all_input_nodes[0])
                model.graph.erase_node(node)
        refresh(model)

    def ensures(self, model: GraphModule) -> list[str]:
        """No padding is left that all its readers can do."""
        return [f"{node.name} can be padded by its readers." for node in model.graph.nodes if _readers(model, node)]


def _readers(model: GraphModule, node: Node) -> list[tuple[Any, tuple[int, ...]]]:
    """Return (convolution, its padding with that of ``node``) for all that read ``node``; none unless each can pad."""
    widths = _widths(model, node)
    layers = [] if widths is None else [layer_of(model, user, *CONVOLUTIONS) for user in node.users]
    found = [(layer, None if layer is None else _padding(layer, widths or [])) for layer in layers]
    readers = [(layer, padding) for layer, padding in found if padding is not None]
    return readers if len(readers) == len(found) else []


def _widths(model: GraphModule, node: Node) -> list[int] | None:
    """Return how many zeros ``node`` puts on either side of each dimension, the last first; None if it does not."""
    layer = layer_of(model, node, *CONSTANT_PADS)
    zeros = None if layer is None and (node.op == "call_module" or info(node).skip) else zeros_around(node, layer)
    return None if zeros is None or any(a != b for a, b in zeros) else [a for a, _ in zeros]


def _padding(layer: Any, widths: list[int]) -> tuple[int, ...] | None:
    """Return the padding of a convolution that pads ``widths`` more, the last dimension first; None if it cannot."""
    own = (0,) * len(layer.kernel_size) if layer.padding == "valid" else layer.padding
    if layer.padding_mode != "zeros" or own == "same" or any(widths[len(own) :]):
        return None
    more = (*widths, *[0] * len(own))[: len(own)]
    return tuple(a + b for a, b in zip(own, reversed(more), strict=True))
