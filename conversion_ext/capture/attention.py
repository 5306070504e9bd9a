"""Attention layers as the matrix products that they consist of, so that tracing sees weights, products and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["OpenAttention", "added_by", "attend", "open_attention"]


def attend(query: Any, key: Any, value: Any, scale: float, added: Any = None) -> Any:
    """Return ``softmax(scale * query key^T + added) value``: attention as two matrix products and a softmax.

    Args:
        query: [N, ..., L, E].
        key: [N, ..., S, E].
        value: [N, ..., S, V].
        scale: the factor of the scores.
        added: what is added to the scores, broadcast to [N, ..., L, S], or None.

    Returns:
        The attended values, [N, ..., L, V].
    """
    scores = torch.matmul(query * scale, key.transpose(-2, -1))
    return torch.matmul(F.softmax(scores if added is None else scores + added, -1), value)


def added_by(mask: Tensor) -> Tensor:
    """Return the numbers that a mask adds to scores: 0 where a boolean one is True, -inf elsewhere."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(mask.logical_not(), -math.inf)


class OpenAttention(nn.Module):
    """``nn.MultiheadAttention`` as four linear layers, two matrix products and a softmax; the function is the same.

    Its projections are ``q_proj``, ``k_proj``, ``v_proj`` (the factor 1 / sqrt(E) is in the first) and ``out_proj``.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.batch_first = layer.num_heads, layer.head_dim, layer.batch_first
        self.bias_k, self.bias_v, self.add_zero_attn = layer.bias_k, layer.bias_v, layer.add_zero_attn
        if layer.in_proj_weight is None:
            weights: Any = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        else:
            weights = layer.in_proj_weight.detach().chunk(3)
        biases: Any = (None,) * 3 if layer.in_proj_bias is None else layer.in_proj_bias.detach().chunk(3)
        scales = (1 / math.sqrt(layer.head_dim), 1.0, 1.0)
        projections = [_linear(w, b, s) for w, b, s in zip(weights, biases, scales, strict=True)]
        self.q_proj, self.k_proj, self.v_proj = projections
        self.out_proj = _linear(layer.out_proj.weight, layer.out_proj.bias, 1.0)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return (output, attention weights or None), shaped as ``nn.MultiheadAttention`` shapes them."""
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q = self._heads(self.q_proj(query))
        k, v = self._extended(self.k_proj(key), self.bias_k), self._extended(self.v_proj(value), self.bias_v)
        scores = torch.matmul(q, self._heads(k).transpose(2, 3))
        if attn_mask is not None:
            mask = self._for_extended(_inverted(attn_mask))
            scores = scores + (mask.unflatten(0, (-1, self.num_heads)) if mask.dim() == 3 else mask)
        if key_padding_mask is not None:
            scores = scores + self._for_extended(_inverted(key_padding_mask)).unsqueeze(1).unsqueeze(2)
        weights = F.softmax(scores, -1)
        output = torch.matmul(weights, self._heads(v)).transpose(1, 2).flatten(2)
        output = self.out_proj(output)
        if not self.batch_first:
            output = output.transpose(0, 1)
        if not need_weights:
            return output, None
        return output, weights.mean(1) if average_attn_weights else weights

    def _extended(self, x: Tensor, position: Tensor | None) -> Tensor:
        """Return keys or values [N, S, E] and the positions that every sample has: a learned one, zeros."""
        if position is not None:
            x = torch.cat([x, position.expand(x.size(0), -1, -1)], 1)
        return F.pad(x, (0, 0, 0, 1)) if self.add_zero_attn else x

    def _for_extended(self, added: Tensor) -> Tensor:
        """Return what a mask adds to scores, 0 for the positions that every sample has."""
        extra = (self.bias_k is not None) + bool(self.add_zero_attn)
        return F.pad(added, (0, extra)) if extra else added

    def _heads(self, x: Tensor) -> Tensor:
        """Split the features [N, L, heads * E] of all heads: [N, heads, L, E]."""
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)


class OpenEncoderLayer(nn.Module):
    """``nn.TransformerEncoderLayer`` written out: attention and two linear layers, each with its shortcut and norm."""

    def __init__(self, layer: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.norm_first = layer.norm_first
        self.self_attn = layer.self_attn
        self.linear1, self.linear2, self.activation = layer.linear1, layer.linear2, layer.activation
        self.norm1, self.norm2 = layer.norm1, layer.norm2

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Return the output, shaped as ``src``."""
        masks: dict[str, Any] = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask}

        def attend_self(x: Tensor) -> Tensor:
            return self.self_attn(x, x, x, need_weights=False, **masks)[0]

        return _with_shortcuts(src, self.norm_first, (self.norm1, attend_self), (self.norm2, partial(_feed, self)))


class OpenEncoder(nn.Module):
    """``nn.TransformerEncoder`` written out: its layers one after the other, then its norm."""

    def __init__(self, encoder: nn.TransformerEncoder) -> None:
        super().__init__()
        self.layers, self.norm = encoder.layers, encoder.norm

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """Return the output, shaped as ``src``."""
        return _in_turn(self, src, mask, src_key_padding_mask)


class OpenDecoderLayer(nn.Module):
    """``nn.TransformerDecoderLayer`` written out: attention to itself, to ``memory``, and two linear layers."""

    def __init__(self, layer: nn.TransformerDecoderLayer) -> None:
        super().__init__()
        self.norm_first = layer.norm_first
        self.self_attn, self.multihead_attn = layer.self_attn, layer.multihead_attn
        self.linear1, self.linear2, self.activation = layer.linear1, layer.linear2, layer.activation
        self.norm1, self.norm2, self.norm3 = layer.norm1, layer.norm2, layer.norm3

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Return the output, shaped as ``tgt``."""
        own: dict[str, Any] = {"attn_mask": tgt_mask, "key_padding_mask": tgt_key_padding_mask}
        other: dict[str, Any] = {"attn_mask": memory_mask, "key_padding_mask": memory_key_padding_mask}

        def attend_self(x: Tensor) -> Tensor:
            return self.self_attn(x, x, x, need_weights=False, **own)[0]

        def attend_memory(x: Tensor) -> Tensor:
            return self.multihead_attn(x, memory, memory, need_weights=False, **other)[0]

        branches = (self.norm1, attend_self), (self.norm2, attend_memory), (self.norm3, partial(_feed, self))
        return _with_shortcuts(tgt, self.norm_first, *branches)


class OpenDecoder(nn.Module):
    """``nn.TransformerDecoder`` written out: its layers one after the other, then its norm."""

    def __init__(self, decoder: nn.TransformerDecoder) -> None:
        super().__init__()
        self.layers, self.norm = decoder.layers, decoder.norm

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Return the output, shaped as ``tgt``."""
        return _in_turn(self, tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)


OPENED: dict[type[nn.Module], type[nn.Module]] = {
    nn.MultiheadAttention: OpenAttention,
    nn.TransformerEncoderLayer: OpenEncoderLayer,
    nn.TransformerEncoder: OpenEncoder,
    nn.TransformerDecoderLayer: OpenDecoderLayer,
    nn.TransformerDecoder: OpenDecoder,
}


def open_attention(model: nn.Module) -> nn.Module:
    """Return a private copy with every attention layer and encoder in its open form; inner ones are replaced first."""
    opened: dict[nn.Module, nn.Module] = {}
    for module in reversed(list(model.modules())):
        for name, child in list(module._modules.items()):  # noqa: SLF001 (named_children() gives a shared one once)
            if child in opened:
                setattr(module, name, opened[child])
        form = OPENED.get(type(module))
        if form is not None:
            opened[module] = form(module).eval()
    return opened.get(model, model)


def _with_shortcuts(x: Tensor, norm_first: bool, *branches: tuple[nn.Module, Callable[[Tensor], Tensor]]) -> Tensor:
    """Return what branches, each with its shortcut and its norm in front of it or behind, make of ``x``."""
    for norm, branch in branches:
        x = x + branch(norm(x)) if norm_first else norm(x + branch(x))
    return x


def _feed(layer: Any, x: Tensor) -> Tensor:
    """Return what the two linear layers of an encoder's or decoder's layer make of ``x``."""
    return layer.linear2(layer.activation(layer.linear1(x)))


def _in_turn(stack: Any, x: Tensor, *others: Any) -> Tensor:
    """Return what the layers of an encoder or decoder, one after the other, and its norm make of ``x``."""
    for layer in stack.layers:
        x = layer(x, *others)
    return x if stack.norm is None else stack.norm(x)


def _inverted(mask: Tensor) -> Tensor:
    """Return the numbers that a mask of nn.MultiheadAttention adds; a boolean one is True where a position is out."""
    return added_by(mask.logical_not() if mask.dtype == torch.bool else mask)


def _linear(weight: Tensor, bias: Tensor | None, scale: float) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight * scale)
        if bias is not None:
            layer.bias.copy_(bias * scale)
    return layer
