"""Shapes of every node of a graph for a batch of one, found by running it once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from conversion_ext.errors import Problem, UnsupportedError
from conversion_ext.graph import meta_device
from conversion_ext.graph.evaluation import Environment, call
from conversion_ext.graph.memory import Storages
from conversion_ext.graph.node_info import key_of, note
from conversion_ext.graph.values import map_tensors, tensors_in

__all__ = ["Shapes", "propagate"]


class Shapes:
    """Per node the shape of a tensor (or nested shapes) that depends on the input; every other value in ``constants``.

    Constants are numbers, sizes, parameters and what is computed from them.
    """

    def __init__(self) -> None:
        self.shapes: dict[Node, Any] = {}
        self.constants: dict[Node, Any] = {}
        self._storages = Storages()

    def add(self, node: Node, value: Any) -> None:
        """Note what came of a node."""
        depends = node.op == "placeholder" or any(source in self.shapes for source in node.all_input_nodes)
        if depends and tensors_in(value):
            self.shapes[node] = _shapes(value)
        else:
            self.constants[node] = value
        note(node, known=True, shape=self.shapes.get(node), memory=self._storages.memory(value))


def _shapes(value: Any) -> Any:
    """Return the shapes of the tensors in ``value``; a list as a tuple, None for what is no tensor."""
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return tuple(_shapes(part) if tensors_in(part) else None for part in value)
    return map_tensors(value, lambda v: v.shape)


def propagate(model: GraphModule, inputs: Sequence[Any], values: bool = True) -> Shapes:
    """Run ``model`` on the first sample of ``inputs``, note the shape of every node, and return all shapes.

    Without ``values`` only shapes are computed, which costs next to nothing and changes no input in place.
    """
    shapes = Shapes()
    evaluate = call
    if not values:
        device = next((value.device for value in inputs if isinstance(value, Tensor)), torch.device("cpu"))
        inputs = [meta_device.shell(value) if isinstance(value, Tensor) else value for value in inputs]
        evaluate = partial(meta_device.compute, device=device)
    # Copies, for the network may change its input in place.
    run = Environment(model, [value[:1].clone() if isinstance(value, Tensor) else value for value in inputs])
    for node in model.graph.nodes:
        try:
            with torch.no_grad():
                value = run.compute(node, evaluate)
        except Exception as error:
            why = str(error).strip().partition("\n")[0].rstrip(".")
            reason = f"it fails on a single sample: {why}."
            problem = Problem(key_of(node), reason, "Check the example input and its shape.")
            raise UnsupportedError(str(problem), (problem,)) from error
        shapes.add(node, value)
        run.keep(node, value)
    return shapes
