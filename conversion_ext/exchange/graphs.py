"""A graph as a list of calls and back: every target is looked up in a closed list, every name is an identifier."""

from __future__ import annotations

import keyword
import re
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from conversion_ext import graph
from conversion_ext.errors import FileError, require
from conversion_ext.exchange import catalogue
from conversion_ext.exchange.modules import Modules
from conversion_ext.exchange.names import parts_read, parts_written

__all__ = ["read", "write"]

PATH = re.compile(r"\w+(\.\w+)*")
SHAPES = ("shape", "ndim", "dtype", "device")  # what a graph may ask of a tensor by getattr


def write(body: GraphModule, modules: Modules) -> dict[str, Any]:
    """Return the graph of ``body`` as plain data; its modules and tensors go to ``modules``."""
    attributes = {
        str(node.target): modules.values.write(_attribute(body, node, modules))
        for node in body.graph.nodes
        if node.op == "get_attr"
    }
    calls = {
        str(node.target): modules.index_of(body.get_submodule(str(node.target)), str(node.target))
        for node in body.graph.nodes
        if node.op == "call_module"
    }
    values = modules.values
    nodes = [
        {
            "op": node.op,
            "name": node.name,
            "target": values.write(node.target),
            "args": [values.write(part) for part in node.args],
            "kwargs": {key: values.write(part) for key, part in node.kwargs.items()},
            "info": parts_written(graph.NodeInfo, {key: values.write(part) for key, part in _known(node).items()}),
        }
        for node in body.graph.nodes
    ]
    return {"name": type(body).__name__, "nodes": nodes, "modules": calls, "attributes": attributes}


def _known(node: Node) -> dict[str, Any]:
    """Return what is known of ``node``, but for defaults and what only passes and normalizers ask for."""
    facts, nothing = vars(graph.info(node)), vars(graph.NodeInfo())
    return {key: value for key, value in facts.items() if key not in ("normal", "memory") and value != nothing[key]}


def _attribute(body: GraphModule, node: Node, modules: Modules) -> Any:
    value = graph.attribute_of(body, node)
    if isinstance(value, Tensor):
        modules.tensors.name_of(value, str(node.target))
    return value


def read(written: dict[str, Any], modules: Modules) -> GraphModule:
    """Return the graph that ``written`` describes, with the modules it calls; raise FileError for any other call."""
    new, values = Graph(), modules.values
    values.nodes.clear()
    for call in written["nodes"]:
        target = _target(call["op"], values.read(call["target"]), written)
        args = tuple(values.read(part) for part in call["args"])
        kwargs = {_identifier(key): values.read(part) for key, part in call["kwargs"].items()}
        if target is getattr:
            require(len(args) == 2 and args[1] in SHAPES, f"it asks a tensor for {args[1:]}.", FileError)
        node = new.create_node(call["op"], target, args, kwargs, _identifier(call["name"]))
        graph.note(node, **parts_read(graph.NodeInfo, {key: values.read(part) for key, part in call["info"].items()}))
        values.nodes[call["name"]] = node
    ends = [node.op for node in new.nodes].count("output"), next(iter(reversed(new.nodes))).op
    require(ends == (1, "output"), "its graph does not end in one output.", FileError)
    held: dict[str, Any] = {path: modules.at(number) for path, number in written["modules"].items()}
    held |= {path: values.read(part) for path, part in written["attributes"].items()}
    body = GraphModule(held, new, _identifier(written["name"]))
    body.graph.lint()
    return body.eval()


def _target(op: str, target: Any, written: dict[str, Any]) -> Any:
    """Return ``target`` if a node of this kind may have it."""
    if op == "call_function":
        allowed = callable(target) and not isinstance(target, nn.Module)
    elif op == "call_method":
        allowed = target in catalogue.methods()
    elif op in ("call_module", "get_attr"):
        allowed = bool(PATH.fullmatch(target)) and target in written["modules" if op == "call_module" else "attributes"]
    else:
        allowed = op in ("placeholder", "output") and bool(_identifier(target))
    require(allowed, f"it calls {target!r} ({op}), which is not known here; is a plug-in missing?", FileError)
    return target


def _identifier(name: str) -> str:
    fits = isinstance(name, str) and name.isidentifier() and name.isascii() and not keyword.iskeyword(name)
    require(fits, f"{name!r} is no name for a part of a network.", FileError)
    return name
