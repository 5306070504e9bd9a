"""Attention calls become matrix products and a softmax."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node, Proxy
from torch.fx.proxy import GraphAppendingTracer

from conversion_ext.capture.attention import added_by, attend
from conversion_ext.capture.passes.base import refuse
from conversion_ext.graph import attribute_of, describe, info, key_of, note, refresh, rename_free

__all__ = ["OpenAttentionCalls"]


def _signature(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> None:
    """Stand for ``F.scaled_dot_product_attention``, which has no signature to read."""


class OpenAttentionCalls:
    """``F.scaled_dot_product_attention`` becomes two matrix products and a softmax, where shapes are known."""

    def run(self, model: GraphModule) -> None:
        """Replace every call."""
        for node in self._calls(model):
            given = inspect.signature(_signature).bind(*node.args, **node.kwargs)
            given.apply_defaults()
            self._open(model, node, **given.arguments)
        refresh(model)

    def ensures(self, model: GraphModule) -> list[str]:
        """No call is left whose shapes are known, but those refused."""
        left = [node for node in self._calls(model) if info(node).known and not info(node).refused]
        return [f"{node.name} is attention in one call." for node in left]

    def _calls(self, model: GraphModule) -> list[Node]:
        return [node for node in model.graph.nodes if node.target is F.scaled_dot_product_attention]

    def _open(
        self,
        model: GraphModule,
        node: Node,
        query: Node,
        key: Node,
        value: Node,
        attn_mask: Node | None,
        dropout_p: float,
        is_causal: bool,
        scale: float | None,
        enable_gqa: bool,
    ) -> None:
        shapes = info(query).shape, info(key).shape
        if not all(isinstance(shape, torch.Size) for shape in shapes):
            return  # without an example nothing is known of its size: the operator is refused then
        if isinstance(is_causal, Node) or isinstance(scale, Node):
            refuse(
                model, node, "computes its scale or is_causal.", "Give scale and is_causal as constants.",
            )  # fmt: skip
            return
        factor = 1 / math.sqrt(shapes[0][-1]) if scale is None else scale
        before = set(model.graph.nodes)
        with model.graph.inserting_before(node):
            added = self._mask(model, node, attn_mask, is_causal, (shapes[0][-2], shapes[1][-2]))
            tracer = GraphAppendingTracer(model.graph)
            q, k, v = (Proxy(n, tracer) for n in (query, key, value))
            if enable_gqa:
                k, v = (_for_every_head(x, len(shapes[1]), shapes[0][-3] // shapes[1][-3]) for x in (k, v))
            result = attend(q, k, v, factor, None if added is None else Proxy(added, tracer))
        for new in model.graph.nodes:
            if new not in before:
                note(new, key=f"{key_of(node)}.{new.name}", line=describe(node))
        node.replace_all_uses_with(result.node)
        note(result.node, key=key_of(node), shape=info(node).shape, known=True)
        model.graph.erase_node(node)

    def _mask(
        self, model: GraphModule, node: Node, mask: Node | None, causal: bool, sizes: tuple[int, int]
    ) -> Node | None:
        """Return the node of what is added to the scores, or None."""
        if causal:
            return _constant(model, node, added_by(torch.ones(sizes, dtype=torch.bool).tril()))
        if mask is not None and info(mask).discrete and mask.op != "get_attr":
            kept, masked = (_constant(model, node, torch.tensor(added)) for added in (0.0, -math.inf))
            return model.graph.call_function(torch.where, (mask, kept, masked))
        if mask is None or mask.op != "get_attr":
            return mask
        return _constant(model, node, added_by(attribute_of(model, mask)))


def _for_every_head(x: Proxy, dims: int, times: int) -> Proxy:
    """Return keys or values [..., H, S, E] of so many dimensions, each head ``times`` over."""
    if times == 1:
        return x
    return x.unsqueeze(dims - 2).expand(*[-1] * (dims - 2), times, -1, -1).flatten(dims - 3, dims - 2)


def _constant(model: GraphModule, node: Node, value: Tensor) -> Node:
    """Add a buffer for ``node`` and return the node that reads it."""
    like = next((p for p in model.parameters() if p.is_floating_point()), value)
    name = rename_free(model, f"{node.name}_mask")
    model.register_buffer(name, value.to(like.device, like.dtype))
    return model.graph.get_attr(name)
