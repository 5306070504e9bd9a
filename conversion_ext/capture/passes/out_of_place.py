"""In-place operations become ordinary ones, so that an edge of the graph is a value and nothing changes behind it."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from conversion_ext.capture.passes.base import refuse
from conversion_ext.graph import info, module_of, refresh

__all__ = ["OutOfPlace"]

_OPERATORS = {getattr(operator, f"i{name}"): getattr(operator, name) for name in
              ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")}  # fmt: skip
_SAME = {"dropout", "identity", "contiguous", "detach", "stochastic_depth", "data"}
_VIEWS = {"view", "reshape", "flatten", "unflatten", "transpose", "permute", "squeeze", "unsqueeze", "chunk", "split",
          "getitem", "expand", "narrow", "unbind", "select", "t"}  # fmt: skip


class OutOfPlace:
    """``relu_(x); y = f(x)`` reads as ``x2 = relu(x); y = f(x2)``.

    Later users of the changed tensor, and of other names of it (dropout and identity return their input),
    get the new value. A *view* of it that is used later cannot be followed and is refused.
    """

    def run(self, model: GraphModule) -> None:
        """Rewrite every in-place module, method, operator and function."""
        found = [node for node in model.graph.nodes if _is_in_place(model, node)]
        for node in found:
            changed = _first(node)
            on_tensor = isinstance(changed, Node) and "dropout" not in _name(model, node)
            if not _make_pure(model, node):
                refuse(model, node, "changes a tensor in place.", "Write it as an operation that returns its result.")
            elif on_tensor and changed is not None:
                self._redirect(model, changed, node)
        refresh(model)

    def _redirect(self, model: GraphModule, changed: Node, node: Node) -> None:
        """Let what used ``changed`` after ``node`` use ``node``."""
        order = {other: index for index, other in enumerate(model.graph.nodes)}
        for name, is_view in _names_of(model, changed):
            later = [user for user in name.users if order[user] > order[node]]
            if order[name] > order[node]:
                continue  # made from the changed tensor, so reached through its redirected users
            if later and is_view:
                refuse(
                    model,
                    node,
                    f"changes a tensor in place while {later[0].name!r} still uses a view of it.",
                    "Write it as an operation that returns its result.",
                )
                continue
            for user in later:
                user.replace_input_with(name, node)

    def ensures(self, model: GraphModule) -> list[str]:
        """No node changes its input, but those refused."""
        left = [node for node in model.graph.nodes if _is_in_place(model, node) and not info(node).refused]
        return [f"{node.name} works in place." for node in left]


def _is_in_place(model: GraphModule, node: Node) -> bool:
    """Return whether ``node`` changes its first input."""
    if node.op == "call_module":
        return getattr(module_of(model, node), "inplace", False) is True
    if node.op == "call_method":
        return _marked(str(node.target))
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        flagged = node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None
        return flagged or node.target in _OPERATORS or (_marked(name) and name != "and_" and name != "or_")
    return False


def _marked(name: str) -> bool:
    """Return whether ``name`` has PyTorch's mark of an in-place operation, one underscore at its end."""
    return name.endswith("_") and not name.endswith("__")


def _make_pure(model: GraphModule, node: Node) -> bool:
    """Give ``node`` the target that returns its result; return False when there is none."""
    if node.op == "call_module":
        module: Any = module_of(model, node)
        module.inplace = False
        return True
    if node.op == "call_method":
        name = str(node.target)[:-1]
        known = callable(getattr(Tensor, name, None))
        node.target = name if known else node.target
        return known
    if node.target in _OPERATORS:
        node.target = _OPERATORS[node.target]
        return True
    if node.kwargs.get("out") is not None:
        return False
    node.kwargs = {key: value for key, value in node.kwargs.items() if key not in ("inplace", "out")}
    name = getattr(node.target, "__name__", "")
    if _marked(name):
        pure = getattr(torch, name[:-1], None) or getattr(F, name[:-1], None)
        node.target = pure or node.target
        return pure is not None
    return True


def _names_of(model: GraphModule, node: Node) -> Iterator[tuple[Node, bool]]:
    """Iterate over (node, is_view) of all nodes whose value shares memory with that of ``node``, itself included."""
    base, is_view = node, False
    parts: dict[Node, object] = {}
    while (step := _alias(model, base)) is not None:
        if base.target is operator.getitem:
            parts[step[0]] = base.args[1]
        base, is_view = step[0], is_view or step[1]
    found = {base: is_view}
    stack = [base]
    while stack:
        name = stack.pop()
        for user in name.users:
            step = _alias(model, user)
            if name in parts and user.args[1] != parts[name]:
                continue  # another chunk of the same tensor
            if step is not None and step[0] is name and user not in found:
                found[user] = found[name] or step[1]
                stack.append(user)
    found[node] = False
    yield from found.items()


def _alias(model: GraphModule, node: Node) -> tuple[Node, bool] | None:
    """Return (input, is_view) when the value of ``node`` shares the memory of its first input."""
    first = _first(node)
    if first is None or node.op in ("placeholder", "output"):
        return None
    name = _name(model, node)
    if any(word in name for word in _SAME):
        return first, False
    return (first, True) if name in _VIEWS else None


def _name(model: GraphModule, node: Node) -> str:
    """Return the lower-case name of what ``node`` calls."""
    if node.op == "call_module":
        return type(module_of(model, node)).__name__.lower()
    return str(node.args[1]) if node.target is getattr else getattr(node.target, "__name__", str(node.target))


def _first(node: Node) -> Node | None:
    """Return the tensor that a call works on."""
    given = node.args[0] if node.args else node.kwargs.get("input")
    return given if isinstance(given, Node) else None
