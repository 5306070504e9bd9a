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
    """Per node the shape of a tensor (or nested shapes) that has the batch; every other value in ``constants``.

    A tensor has the batch if it depends on an input, or if its dimension 0 is the size of the batch, as that of a
    parameter expanded to it. Constants are numbers, sizes, parameters and what is computed from them.
    """

    def __init__(self) -> None:
        self.shapes: dict[Node, Any] = {}
        self.constants: dict[Node, Any] = {}
        self._two: dict[Node, Any] = {}  # what numbers that depend on the size of the batch are for two samples
        self._storages = Storages()

    def add(self, node: Node, run: Environment, value: Any) -> None:
        """Note what came of a node."""
        sources = node.all_input_nodes
        has_batch = node.op == "placeholder" or any(source in self.shapes for source in sources)
        if not (has_batch and tensors_in(value)) and any(n in self.shapes or n in self._two for n in sources):
            two = self._for_two(node, run, value)
            has_batch = _is_batch(value, two)
            if not has_batch and not tensors_in(value) and two != value:
                self._two[node] = two
        if has_batch and tensors_in(value):
            self.shapes[node] = _shapes(value)
        else:
            self.constants[node] = value
        tensors = tensors_in(value)
        discrete = bool(tensors) and not any(v.is_floating_point() or v.is_complex() for v in tensors)
        note(
            node, known=True, shape=self.shapes.get(node), memory=self._storages.memory(value), discrete=discrete
        )  # fmt: skip

    def _for_two(self, node: Node, run: Environment, value: Any) -> Any:
        """Return what a node that depends on sizes alone is for two samples; ``value`` where that is not known."""

        def source(n: Node) -> Any:
            if n in self.shapes:
                return map_tensors(run.values[n], lambda v: v.new_empty((2 * len(v), *v.shape[1:]), device="meta"))
            return self._two.get(n, run.values[n])

        try:
            return call(run.model, node, source)
        except Exception:  # noqa: BLE001 (whatever the user's function raises for other sizes)
            return value


def _is_batch(one: Any, two: Any) -> bool:
    """Return whether the tensors in a value have the batch in dimension 0, given the value for two samples."""
    pairs = list(zip(tensors_in(one), tensors_in(two), strict=False))
    return bool(pairs) and all(a.dim() > 0 and len(b) == 2 * len(a) for a, b in pairs)


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
        shapes.add(node, run, value)
        run.keep(node, value)
    return shapes
