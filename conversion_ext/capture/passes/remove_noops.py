"""What does nothing in evaluation mode is removed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from conversion_ext.capture.passes.base import layer_of, refuse
from conversion_ext.graph import refresh

__all__ = ["RemoveNoops"]

_MODULES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity)
_METHODS = {"contiguous", "clone", "detach"}
_ASSERTIONS = {"_assert", "_assert_is_none"}


class RemoveNoops:
    """Dropout, identity, stochastic depth, copies of a value, and assertions about it are removed."""

    def run(self, model: GraphModule) -> None:
        """Let users read the input instead."""
        for node in list(model.graph.nodes):
            if _name(node) in _ASSERTIONS:
                model.graph.erase_node(node)
            elif _views(node):
                node.target = "reshape"  # without .contiguous() nothing promises the layout that view() needs
            elif _is_noop(model, node):
                node.replace_all_uses_with(node.args[0])
                model.graph.erase_node(node)
            elif _name(node) == "stochastic_depth":
                refuse(model, node, "drops at random in evaluation mode too.", "Pass training=self.training.")
        refresh(model)

    def ensures(self, model: GraphModule) -> list[str]:
        """Nothing is left that returns its input."""
        return [f"{n.name} does nothing." for n in model.graph.nodes if _is_noop(model, n) or _views(n)]


def _name(node: Node) -> str:
    """Return the name of the function that ``node`` calls, or an empty string."""
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""


def _views(node: Node) -> bool:
    """Return whether ``node`` is ``x.view(sizes)``, not ``x.view(dtype)``."""
    return node.op == "call_method" and node.target == "view" and not isinstance(node.args[1], torch.dtype)


def _is_noop(model: GraphModule, node: Node) -> bool:
    """Return whether ``node`` returns its first argument."""
    if not node.args or not isinstance(node.args[0], Node):
        return False
    if node.op == "call_module":
        layer = layer_of(model, node, *_MODULES)
        return layer is not None and not layer.training
    if node.op == "call_method":
        return node.target in _METHODS
    if node.target is getattr:
        return node.args[1:] == ("data",)
    if _name(node) == "stochastic_depth":
        given: dict[str, Any] = dict(zip(("p", "mode", "training"), node.args[1:], strict=False)) | dict(node.kwargs)
        return given.get("training", True) is False or given.get("p") == 0
    return node.target in (torch.clone, torch.detach)
