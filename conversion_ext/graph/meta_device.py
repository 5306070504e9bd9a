"""Calls without values: torch's meta device tells the shapes of what a function returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from conversion_ext.graph import evaluation
from conversion_ext.graph.layers import BATCH_NORMS
from conversion_ext.graph.surgery import is_stock
from conversion_ext.graph.values import map_tensors, tensors_in

__all__ = ["call", "call_module", "compute", "shell"]


def shell(value: Tensor) -> Tensor:
    """Return a tensor of the shape, layout and dtype of ``value`` that holds no values."""
    if value.is_meta:
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")


def call(function: Callable[..., Any], args: Any, kwargs: Any, device: torch.device) -> Any:
    """Return ``function(*args, **kwargs)`` with tensors that hold no values.

    A function that cannot run without values (custom kernels, branches on values in a module that is kept whole) runs
    on zeros on ``device``.
    """
    try:
        return function(*map_tensors(args, shell), **map_tensors(kwargs, shell))
    except Exception:  # what real tensors say of the same call reads better
        filled = map_tensors((args, kwargs), lambda v: _filled(v, device))
        return map_tensors(function(*filled[0], **filled[1]), shell)


def call_module(module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any, device: torch.device) -> Any:
    """Return what ``forward`` of ``module`` returns, with tensors that hold no values; hooks do not run."""
    given = args[0] if len(args) == 1 and not kwargs else None
    if isinstance(given, Tensor) and given.is_meta and _keeps_shape(module, given):
        return torch.empty_like(given)
    named = [*module.named_parameters(), *module.named_buffers()]
    plain = _Plain(module, forward)

    def run(*args: Any, **kwargs: Any) -> Any:
        hollow = any(value.is_meta for value in tensors_in((args, kwargs)))
        state = {f"module.{name}": shell(value) if hollow else value.clone() for name, value in named}
        return torch.func.functional_call(plain, state, args, kwargs)

    return call(run, args, kwargs, device)


def _keeps_shape(module: nn.Module, given: Tensor) -> bool:
    """Return whether a layer of torch returns what looks like its input, which need not be worked out."""
    if not is_stock(module) or getattr(module, "inplace", False):
        return False
    if isinstance(module, BATCH_NORMS):
        fits = given.dim() in {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}.get(type(module), ())
        known = isinstance(module.running_mean, Tensor) and module.running_mean.dtype == given.dtype
        return fits and known and given.shape[1] == module.num_features
    return type(module) in (nn.ReLU, nn.Sigmoid, nn.Tanh)


def compute(model: GraphModule, node: Node, value: Callable[[Node], Any], device: torch.device) -> Any:
    """Return what ``node`` computes from the ``value`` of its input nodes: only a shape where one of these is one."""
    args, kwargs = map_arg((node.args, dict(node.kwargs)), value)
    if node.op in ("get_attr", "output") or not any(tensor.is_meta for tensor in tensors_in((args, kwargs))):
        return evaluation.call(model, node, value)
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return call_module(module, module.forward, args, kwargs, device)
    if node.op == "call_method":
        name = str(node.target)
        return call(lambda tensor, *args, **kwargs: getattr(tensor, name)(*args, **kwargs), args, kwargs, device)
    return call(node.target, args, kwargs, device)  # type: ignore[arg-type]


class _Plain(nn.Module):
    """A module whose call is its forward and nothing else."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.run = module, forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


def _filled(value: Tensor, device: torch.device) -> Tensor:
    return torch.zeros(value.shape, dtype=value.dtype, device=device) if value.is_meta else value
