"""Operators of exported graphs, as the functions that users write."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["plain_call"]

_OPERATORS = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "matmul": operator.matmul,
    "pow": operator.pow,
}  # fmt: skip
_WITHOUT_LAST = {"layer_norm", "group_norm", "instance_norm"}  # a switch of cuDNN


def plain_call(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
    """Return (function, args, kwargs) for a call of ``torch.ops.aten``; any other call as it is."""
    if not isinstance(func, torch._ops.OpOverload) or func.namespace != "aten":  # noqa: SLF001 (torch names no public type for it)
        return func, args, kwargs
    name = func.overloadpacket.__name__
    if name in _OPERATORS and len(args) == 2 and not kwargs:
        return _OPERATORS[name], args, kwargs
    if name == "batch_norm":
        x, weight, bias, mean, variance, training, momentum, eps = args[:8]
        return F.batch_norm, (x, mean, variance, weight, bias, training, momentum, eps), {}
    if name in _WITHOUT_LAST:
        args = args[: {"layer_norm": 5, "group_norm": 5, "instance_norm": 8}[name]]
    function = getattr(F, name, None) or getattr(torch, name, None) or getattr(Tensor, name, None)
    return (func if function is None else function), args, kwargs
