"""The contract of an exact rewrite of the ANN, and what the rewrites share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import nn
from torch.fx import GraphModule, Node

from conversion_ext.errors import Problem, require
from conversion_ext.graph import describe, info, is_stock, key_of, module_of, note
from conversion_ext.registry import Registry

__all__ = ["Pass", "layer_of", "layers", "passes", "refuse", "refused", "register_pass"]


class Pass(Protocol):
    """A rewrite that leaves the function of the network unchanged (float64: to 1e-10)."""

    def run(self, model: GraphModule) -> None:
        """Rewrite ``model`` in place; leave it linted and recompiled. Running it again changes nothing."""
        ...

    def ensures(self, model: GraphModule) -> list[str]:
        """Return the broken promises of the rewrite on ``model``, as sentences; empty when all hold."""
        ...


passes: Registry[Pass] = Registry("pass")


def register_pass(name: str, rewrite: Pass) -> Pass:
    """Add a rewrite under ``name``; rewrites run in order of registration."""
    fits = all(callable(getattr(rewrite, method, None)) for method in ("run", "ensures"))
    require(
        isinstance(name, str) and fits,
        f"register_pass({name!r}, {rewrite!r}): give a name and an object with the methods run(model) and "
        "ensures(model).",
        TypeError,
    )
    return passes.register(name, rewrite)


def layers(model: GraphModule, *types: type[nn.Module]) -> Iterator[tuple[Node, Any]]:
    """Iterate over (node, layer) of the calls that a rewrite may touch: torch.nn behaviour, not skipped."""
    for node in list(model.graph.nodes):
        layer = layer_of(model, node, *types)
        if layer is not None:
            yield node, layer


def layer_of(model: GraphModule, node: object, *types: type[nn.Module]) -> Any | None:
    """Return the layer that ``node`` calls if it is of ``types`` and a rewrite may touch it, or None."""
    if not isinstance(node, Node) or info(node).skip:
        return None
    module = module_of(model, node)
    return module if isinstance(module, types) and is_stock(module) else None


def refuse(model: GraphModule, node: Node, reason: str, remedy: str) -> None:
    """Note that ``node`` cannot be converted; ``run_passes`` raises after all rewrites."""
    note(node, refused=True)
    problem = Problem(key_of(node), reason, remedy, describe(node))
    noted = model.meta.setdefault("problems", [])
    if problem not in noted:
        noted.append(problem)


def refused(model: GraphModule) -> tuple[Problem, ...]:
    """Return all problems noted on ``model``."""
    return tuple(model.meta.get("problems", ()))
