"""How a call of a torch function reads in a graph: as the operator, the method or the function that users write."""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import MethodDescriptorType, WrapperDescriptorType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import is_tensor_method_or_property

__all__ = ["method_called", "node_of"]

_OPERATORS = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "matmul": operator.matmul,
    "pow": operator.pow, "remainder": operator.mod, "__getitem__": operator.getitem, "gt": operator.gt,
    "lt": operator.lt, "ge": operator.ge, "le": operator.le, "__eq__": operator.eq, "__ne__": operator.ne,
    "__floordiv__": operator.floordiv, "__and__": operator.and_, "__or__": operator.or_,
}  # fmt: skip
_SWAPPED = {
    "__rsub__": operator.sub, "__rdiv__": operator.truediv, "__rtruediv__": operator.truediv, "__rpow__": operator.pow,
    "__rfloordiv__": operator.floordiv, "__rmatmul__": operator.matmul, "__rmod__": operator.mod,
}  # fmt: skip
_ATEN = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "matmul": operator.matmul,
    "pow": operator.pow,
}  # fmt: skip
_WITHOUT_LAST = {"layer_norm", "group_norm", "instance_norm"}  # a switch of cuDNN


def _plain_call(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
    """Return (function, args, kwargs) for a call of ``torch.ops.aten``; any other call as it is."""
    if not isinstance(func, torch._ops.OpOverload) or func.namespace != "aten":  # noqa: SLF001 (torch names no public type for it)
        return func, args, kwargs
    name = func.overloadpacket.__name__
    if name in _ATEN and len(args) == 2 and not kwargs:
        return _ATEN[name], args, kwargs
    if name == "batch_norm":
        x, weight, bias, mean, variance, training, momentum, eps = args[:8]
        return F.batch_norm, (x, mean, variance, weight, bias, training, momentum, eps), {}
    if name in _WITHOUT_LAST:
        args = args[: {"layer_norm": 5, "group_norm": 5, "instance_norm": 8}[name]]
    function = getattr(F, name, None) or getattr(torch, name, None) or getattr(Tensor, name, None)
    return (func if function is None else function), args, kwargs


def node_of(func: Any, args: Any, kwargs: Any) -> tuple[str, Any, Any, Any]:
    """Return (op, target, args, kwargs) of the node that stands for a call of a torch function."""
    func, args, kwargs = _plain_call(func, args, kwargs)
    name = getattr(func, "__name__", "")
    if name in _SWAPPED and len(args) == 2:
        return "call_function", _SWAPPED[name], args[::-1], kwargs
    descriptor = isinstance(func, MethodDescriptorType | WrapperDescriptorType)
    method = descriptor or is_tensor_method_or_property(func) or getattr(Tensor, name, None) is func
    if not method:
        return "call_function", func, args, kwargs
    if name in _OPERATORS and len(args) == 2 and not kwargs:
        return "call_function", _OPERATORS[name], args, kwargs
    return "call_method", name, args, kwargs


def method_called(name: str) -> Callable[..., Any]:
    """Return the method ``name`` of tensors as a function."""
    return lambda tensor, *args, **kwargs: getattr(tensor, name)(*args, **kwargs)
