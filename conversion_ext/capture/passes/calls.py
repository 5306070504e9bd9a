"""Function and method calls become modules: what the two standardizing rewrites share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from conversion_ext.capture.passes.base import refuse
from conversion_ext.graph import attribute_of, key_of, refresh, replace_call

__all__ = ["CallsToModules", "RefusedError", "Rule", "parameter"]

Rule = Callable[..., nn.Module | None]


class RefusedError(Exception):
    """Raised by a rule that meets a call which cannot be converted: RefusedError(reason, remedy)."""


class CallsToModules:
    """Replaces calls by modules.

    A rule has the signature of the function (or method) it stands for, its first parameter named ``input``,
    and returns the module that computes the same, or None to leave the call. Tensors among the arguments
    are those of the network, so that modules hold the same Parameter objects; a call with other computed
    arguments is left.
    """

    def __init__(self, rules: Mapping[Any, Rule]) -> None:
        self._rules = rules

    def run(self, model: GraphModule) -> None:
        """Replace every call that a rule covers."""
        for node, given, module in self._found(model):
            if isinstance(module, RefusedError):
                refuse(model, node, *module.args)
            else:
                replace_call(model, node, module.eval(), (given,), key_of(node))
        refresh(model)

    def ensures(self, model: GraphModule) -> list[str]:
        """No covered call is left, but those that a rule leaves or refuses."""
        return [f"{n.name} calls {n.target}." for n, _, module in self._found(model) if isinstance(module, nn.Module)]

    def _found(self, model: GraphModule) -> Iterator[tuple[Node, Node, nn.Module | RefusedError]]:
        """Iterate over (call, its input, module in its place)."""
        for node in list(model.graph.nodes):
            rule = self._rules.get(node.target) if node.op in ("call_function", "call_method") else None
            given = _bind(model, rule, node) if rule else None
            if not rule or not given or not isinstance(given["input"], Node):
                continue
            try:
                module = rule(**given)
            except RefusedError as refusal:
                module = refusal
            if module is not None:
                yield node, given["input"], module


def _bind(model: GraphModule, rule: Rule, node: Node) -> dict[str, Any] | None:
    """Return the arguments of ``rule`` for the call ``node``, or None when they are not all known."""
    try:
        given = inspect.signature(rule).bind(*node.args, **node.kwargs).arguments
    except TypeError:
        return None
    for name, value in list(given.items())[1:]:
        if isinstance(value, Node) and value.op == "get_attr":
            given[name] = attribute_of(model, value)
        elif _computed(value):
            return None
        elif isinstance(value, list):  # layers of torch.nn tell tuples from lists
            given[name] = tuple(value)
    return given


def _computed(value: Any) -> bool:
    """Return whether an argument holds a node."""
    nodes: list[Node] = []
    torch.fx.map_arg(value, nodes.append)
    return bool(nodes)


def parameter(tensor: Tensor | None) -> nn.Parameter | None:
    """Return the tensor as a Parameter: itself, if it is one."""
    if tensor is None or isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.detach(), requires_grad=False)
