"""Embeddings: the analog first layer of a network whose input is indices."""

from __future__ import annotations

from torch import nn
from torch.fx import Node

from conversion_ext.operators.base import Lookup, Operator, register_operator

__all__: list[str] = []


@register_operator(nn.Embedding, nn.EmbeddingBag)
def embedding(node: Node, module: nn.Module | None) -> Operator:
    """Look up rows, or the means of some."""
    return Lookup()
