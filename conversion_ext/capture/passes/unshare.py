"""One module per call site, so that each place can get a scale, a state and a folded weight of its own."""

from __future__ import annotations

import copy
from typing import Any

from torch.fx import GraphModule, Node

from conversion_ext.graph import add_module, key_of, module_of, refresh

__all__ = ["Unshare"]


class Unshare:
    """A module called twice becomes two modules that hold the same Parameter and buffer objects (tied weights)."""

    def run(self, model: GraphModule) -> None:
        """Give every later call site a copy of the module."""
        for node in _repeated(model):
            module: Any = module_of(model, node)
            shared = [*module.parameters(), *module.buffers()]
            copied = copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
            node.target = add_module(model, key_of(node), copied)
        refresh(model)

    def ensures(self, model: GraphModule) -> list[str]:
        """No module has two call sites."""
        return [f"{node.name} calls a module that is called elsewhere." for node in _repeated(model)]


def _repeated(model: GraphModule) -> list[Node]:
    """Return the calls of modules that an earlier call reached already, itself or inside a module kept whole."""
    seen: set[int] = set()
    repeated = []
    for node in model.graph.nodes:
        module = module_of(model, node)
        if module is None:
            continue
        parts = {id(part) for part in module.modules()}
        if parts & seen:
            repeated.append(node)
        seen |= parts
    return repeated
