"""Embeddings: the analog first layer of a network whose input is indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from conversion_ext.operators.base import NodeContext, Operator, Units, ones, register_operator

__all__ = ["Lookup"]


@dataclass(frozen=True)
class Lookup(Operator):
    """A row of a table for every index: the current of a constant input, in unit 1."""

    def output_unit(self, context: NodeContext, units: Sequence[Units], requested: Units) -> Tensor:
        return ones(context.out_shape)

    def input_units(self, context: NodeContext, units: Sequence[Units], output: Any) -> list[Units]:
        return [ones(shape) for shape in context.shapes]


@register_operator(nn.Embedding, nn.EmbeddingBag)
def embedding(node: Node, module: nn.Module | None) -> Operator:
    """Look up rows, or the means of some."""
    return Lookup()
