"""Shapes of every node of a graph for a batch of one, found by running it once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_map

from conversion_ext import graph
from conversion_ext.errors import Problem, UnsupportedError

__all__ = ["Shapes", "propagate"]


class Shapes(fx.Interpreter):
    """Runs a graph and keeps, per node, the shape of a tensor (or nested shapes) that depends on the input.

    Every other value (numbers, sizes, parameters and what is computed from them) is kept as it is, in ``constants``.
    """

    def __init__(self, model: GraphModule) -> None:
        super().__init__(model)
        self.shapes: dict[Node, Any] = {}
        self.constants: dict[Node, Any] = {}
        self.last: Node | None = None

    def run_node(self, n: Node) -> Any:
        """Run one node and note what came of it."""
        self.last = n
        value = super().run_node(n)
        if n.op != "placeholder" and not any(source in self.shapes for source in n.all_input_nodes):
            self.constants[n] = value
        elif isinstance(value, Tensor):
            self.shapes[n] = value.shape
        elif isinstance(value, (tuple, list)) and value and all(isinstance(v, Tensor) for v in value):
            self.shapes[n] = tuple(v.shape for v in value)
        elif any(isinstance(v, Tensor) for v in tree_leaves(value)):
            self.shapes[n] = tree_map(lambda v: v.shape if isinstance(v, Tensor) else None, value)
        else:
            self.constants[n] = value
        n.meta["shape"] = self.shapes.get(n)
        return value


def propagate(model: GraphModule, inputs: Sequence[Any]) -> Shapes:
    """Run ``model`` on the first sample of ``inputs``, set ``meta["shape"]`` on every node, and return all shapes."""
    shapes = Shapes(model)
    try:
        with torch.no_grad():
            shapes.run(*[value[:1] if isinstance(value, Tensor) else value for value in inputs])
    except Exception as error:
        path = graph.key_of(shapes.last) if shapes.last is not None else type(model).__name__
        why = str(error).strip().partition("\n")[0].rstrip(".")
        problem = Problem(path, f"it fails on a single sample: {why}.", "Check the example input and its shape.")
        raise UnsupportedError(str(problem), (problem,)) from error
    return shapes
