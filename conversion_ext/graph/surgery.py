"""The only file that does raw surgery on torch.fx graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from conversion_ext.graph.node_info import carry, info

__all__ = [
    "add_module",
    "attribute_of",
    "insert_after",
    "is_number",
    "is_stock",
    "may_hold_data",
    "module_of",
    "modules_called",
    "refresh",
    "rename_free",
    "replace_call",
]


def module_of(model: GraphModule, node: Node) -> nn.Module | None:
    """Return the module that ``node`` calls, or None."""
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def attribute_of(model: GraphModule, node: Node) -> Any:
    """Return the parameter, buffer or constant that a get_attr node names."""
    value: Any = model
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value


def is_number(node: Node) -> bool:
    """Return whether the value of ``node`` is a size or computed from sizes, which are values, not memory."""
    if node.op == "call_method" and node.target in ("size", "dim", "numel", "ndimension"):
        return True
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    pure = node.op == "call_function" and getattr(node.target, "__module__", "") in ("_operator", "math")
    return pure and bool(node.all_input_nodes) and all(map(is_number, node.all_input_nodes))


def may_hold_data(node: Node) -> bool:
    """Return whether the value of ``node`` may depend on the batch: it does, or that is not known."""
    known = info(node)
    return known.is_data if known.known else node.op != "get_attr" and not is_number(node)


def is_stock(module: nn.Module) -> bool:
    """Return whether ``module`` computes what a layer of torch.nn does: it is one, or does not override ``forward``."""
    if "forward" in vars(module):
        return False
    owner = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    return owner.__module__.startswith(("torch.nn.", "torch.ao.nn.")) and owner not in (nn.Module, nn.Sequential)


def modules_called(model: GraphModule, *types: type[nn.Module]) -> Iterator[tuple[Node, Any]]:
    """Iterate over (node, module) of calls to modules of the given types (subclasses too), in graph order."""
    for node in list(model.graph.nodes):
        module = module_of(model, node)
        if isinstance(module, types):
            yield node, module


def rename_free(model: GraphModule, name: str) -> str:
    """Return ``name``, dots made underscores, or the first ``name_2``, ``name_3``, ... that ``model`` does not hold."""
    base = name.replace(".", "_").replace("#", "_")
    free, count = base, 1
    while hasattr(model, free):
        count += 1
        free = f"{base}_{count}"
    return free


def add_module(model: GraphModule, name: str, module: nn.Module) -> str:
    """Add ``module`` at the top of ``model`` under a free name and return that name."""
    name = rename_free(model, name)
    model.add_module(name, module)
    return name


def replace_call(
    model: GraphModule, node: Node, module: nn.Module, args: tuple[Any, ...], name: str | None = None
) -> Node:
    """Replace ``node`` by a call of a new module with ``args``; keep its key and source line."""
    target = add_module(model, name or node.name, module)
    with model.graph.inserting_before(node):
        new = model.graph.call_module(target, args)
    carry(node, new)
    node.replace_all_uses_with(new)
    model.graph.erase_node(node)
    return new


def insert_after(model: GraphModule, node: Node, module: nn.Module, name: str, extra: tuple[Any, ...] = ()) -> Node:
    """Insert a call ``module(node, *extra)`` between ``node`` and all its present users."""
    users = list(node.users)
    target = add_module(model, name, module)
    with model.graph.inserting_after(node):
        new = model.graph.call_module(target, (node, *extra))
    carry(node, new, key="")
    for user in users:
        user.replace_input_with(node, new)
    return new


def refresh(model: GraphModule) -> None:
    """Drop unused nodes and modules, check the graph and rebuild its code."""
    model.graph.eliminate_dead_code()
    model.delete_all_unused_submodules()
    model.graph.lint()
    model.recompile()
