"""Evaluate nodes of a graph, and ask which of them depend on others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from conversion_ext.graph.node_info import info
from conversion_ext.graph.surgery import attribute_of
from conversion_ext.graph.values import map_sizes, map_tensors

__all__ = ["Environment", "call", "constant", "inputs_of", "output_of", "steps_of", "varying"]


def call(model: GraphModule, node: Node, value: Callable[[Node], Any]) -> Any:
    """Return what ``node`` computes, given the ``value`` of each of its input nodes.

    The only evaluator of single nodes. A placeholder has no value of its own: the caller knows it.
    """
    if node.op == "get_attr":
        return attribute_of(model, node)
    args, kwargs = map_arg((node.args, dict(node.kwargs)), value)
    if node.op == "output":
        return args[0]
    if node.op == "call_module":
        return model.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue] (call_function: a callable)


def constant(model: GraphModule, node: Node) -> Any:
    """Return the value of a node that holds no data: a parameter, or what follows from parameters and shapes alone.

    Shapes must be known; they are those of a batch of one.
    """

    def value(source: Node) -> Any:
        shape = info(source).shape
        if shape is None:
            return constant(model, source)
        return map_sizes(shape, lambda sizes: torch.empty(1).expand(sizes))  # of data only the shape is read

    return map_tensors(call(model, node, value), lambda v: v.cpu())


class Environment:
    """The values of nodes while a graph is run node by node; each is freed after its last use."""

    def __init__(self, model: GraphModule, inputs: Sequence[Any]) -> None:
        self.model = model
        self.values: dict[Node, Any] = {}
        self._inputs = iter(inputs)
        last = {source: node for node in model.graph.nodes for source in node.all_input_nodes}
        self._last: dict[Node, list[Node]] = {}
        for source, node in last.items():
            self._last.setdefault(node, []).append(source)

    def compute(self, node: Node, evaluate: Callable[..., Any] = call) -> Any:
        """Return what ``node`` computes from the values held; those of all nodes before it must have been kept."""
        if node.op == "placeholder":
            return next(self._inputs, *node.args)  # an input that is not given has its default
        return evaluate(self.model, node, self.values.__getitem__)

    def keep(self, node: Node, value: Any) -> None:
        """Hold the value of ``node``, and free those that it was the last to read."""
        self.values[node] = value
        for source in self._last.get(node, ()):
            del self.values[source]


def inputs_of(model: GraphModule) -> list[Node]:
    """Return the inputs of ``model`` in order; the last one of a converted network is ``steps``."""
    return [node for node in model.graph.nodes if node.op == "placeholder"]


def steps_of(body: GraphModule) -> Node:
    """Return the input of a converted network that holds the time axis."""
    return inputs_of(body)[-1]


def output_of(model: GraphModule) -> Node:
    """Return the output node of ``model``."""
    return next(node for node in reversed(model.graph.nodes) if node.op == "output")


def varying(graph: Graph, sources: Iterable[Node]) -> set[Node]:
    """Return all nodes whose value depends on one of ``sources``, these included."""
    nodes = set(sources)
    for node in graph.nodes:
        if not nodes.isdisjoint(node.all_input_nodes):
            nodes.add(node)
    return nodes
