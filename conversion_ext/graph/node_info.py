"""What is known of a node of a graph: one typed value in the place of loose keys of ``node.meta``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from conversion_ext.graph.memory import Memory

__all__ = ["NodeInfo", "carry", "describe", "info", "key_of", "note"]

KEY = "conversion_ext"


@dataclass(frozen=True)
class NodeInfo:
    """What is known of a node.

    Attributes:
        key: The path under which reports name it, ``layer1.0.relu#1`` for a second call site; "" for the default.
        line: The line of the user's source that made it, or "".
        known: Whether the graph was run on an example, so that ``shape`` holds.
        shape: The shape for a batch of one where the value is data: a tensor (or a tuple of them) with the batch in
            dimension 0. None for numbers, sizes and parameters.
        memory: Where the tensors in the value lie, as the graph was captured: who shares memory with whom.
        batch: How many rows of dimension 0 each sample has, for batches of any size: 1 for [N, ...], k for [N k, ...]
            whose rows of one sample lie together (windows, frames), 0 where dimension 0 is no multiple of the batch.
            Of a number, how many times the batch size it is. None where nothing is known.
        skip: Whether the user keeps it out of the conversion.
        refused: Whether a pass refused it.
        normal: Mean and standard deviation [C] that a BatchNorm gives its output.
        discrete: Whether the value is of integers or booleans: indices, masks.
    """

    key: str = ""
    line: str = ""
    known: bool = False
    shape: Any = None
    memory: tuple[Memory, ...] | None = None
    batch: int | None = None
    skip: bool = False
    refused: bool = False
    normal: tuple[Tensor, Tensor] | None = None
    discrete: bool = False

    @property
    def is_data(self) -> bool:
        """Whether the value is known to depend on the batch."""
        return self.shape is not None

    @property
    def is_tensor(self) -> bool:
        """Whether the value is known to be one tensor of data."""
        return isinstance(self.shape, torch.Size)

    @property
    def is_constant(self) -> bool:
        """Whether the value is known to be the same for every batch, or a number."""
        return self.known and self.shape is None


def info(node: Node) -> NodeInfo:
    """Return what is known of ``node``."""
    return node.meta.get(KEY, _NOTHING)


def note(node: Node, **facts: Any) -> None:
    """Add facts to what is known of ``node``."""
    node.meta[KEY] = replace(info(node), **facts)


def carry(old: Node, new: Node, **facts: Any) -> None:
    """Let ``new``, which stands in the place of ``old``, have its key, line and shape, but for the ``facts`` given."""
    known = info(old)
    kept = NodeInfo(
        key=known.key, line=known.line, known=known.known, shape=known.shape, batch=known.batch, discrete=known.discrete
    )  # fmt: skip
    new.meta[KEY] = replace(kept, **facts)


def key_of(node: Node) -> str:
    """Return the path under which reports name ``node``: ``layer1.0.relu#1`` for a second call site."""
    return info(node).key or (str(node.target) if node.op == "call_module" else node.name)


def describe(node: Node) -> str:
    """Return the line of the user's source that made ``node``, or an empty string."""
    return info(node).line


_NOTHING = NodeInfo()
