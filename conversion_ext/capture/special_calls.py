"""Calls that need more than a node of their own: sizes, casts, constants, extremes, assignments."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from conversion_ext.capture.batch_number import BatchNumber
from conversion_ext.capture.calls import method_called
from conversion_ext.capture.contractions import CONTRACTIONS
from conversion_ext.capture.definitions import DEFINITIONS
from conversion_ext.capture.recorded_values import Recording, RefusedError
from conversion_ext.graph import meta_device
from conversion_ext.graph.structure import leaves_of
from conversion_ext.operators.assignment import with_item
from conversion_ext.operators.comparison import where_compared

__all__ = ["SPECIAL"]

_CONSTRUCTORS = {
    "zeros": 0.0, "ones": 1.0, "zeros_like": 0.0, "ones_like": 1.0, "new_zeros": 0.0, "new_ones": 1.0,
    "empty": 0.0, "empty_like": 0.0, "new_empty": 0.0,  # what is never read
}  # fmt: skip


def _size(recording: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    tensor, dim = (*args, kwargs.get("dim"))[:2]
    other = recording.known[id(tensor)].other if id(tensor) in recording.known else tensor
    pairs = enumerate(zip(tensor.shape, other.shape, strict=True))
    sizes = torch.Size([_length(recording, tensor, d, a, b) for d, (a, b) in pairs])
    return sizes if dim is None else sizes[dim]


def _length(recording: Recording, tensor: Tensor, dim: int, first: int, other: int) -> int:
    if first == other:
        return first
    return BatchNumber(first, other, recording, lambda: recording.create("call_method", "size", (tensor, dim), {}))


def _reverse(recording: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    return recording.function(Tensor.flip, (args[0], 0), {})


def _to(recording: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    """Change the dtype; a move to where the network lives is none."""
    tensor, *rest = args
    given = [*rest, *(kwargs[key] for key in ("dtype", "device", "other") if key in kwargs)]
    given = [value.dtype if isinstance(value, Tensor) else value for value in given]
    place = next((value for value in given if isinstance(value, torch.device | str)), None)
    dtype = next((value for value in given if isinstance(value, torch.dtype)), None)
    if place is not None and torch.device(place).type != recording.device.type:
        raise RefusedError(f"moves data to {place}.", f"Let the whole network live on {recording.device}.")
    if not recording.depends(tensor):
        return tensor if dtype is None else tensor.to(dtype)
    return tensor if dtype is None else recording.function(Tensor.to, (tensor, dtype), {})


def _type_as(recording: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    return _to(recording, func, (args[0], args[1].dtype), {})


def _move(recording: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    return _to(recording, func, (args[0], func.__name__), {})


def _extreme(recording: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    """Return maximum or minimum: over a dimension with the positions, which nobody may use, or of two tensors."""
    sign = 1 if func.__name__ == "max" else -1
    second = kwargs.get("other", kwargs.get("dim", args[1] if len(args) > 1 else None))
    if isinstance(second, Tensor):
        return recording.function(torch.maximum if sign == 1 else torch.minimum, (args[0], second), {})
    if second is None:
        return recording.function(func, args, kwargs)
    keepdim = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
    values = recording.defined(DEFINITIONS["amax" if sign == 1 else "amin"], (args[0], second, keepdim), {})
    shapes = [func(*recording.at(args, other=twin), **recording.at(kwargs, other=twin)) for twin in (False, True)]
    recording.know(shapes[0].indices, shapes[1].indices, _positions)
    return type(shapes[0])([values, shapes[0].indices])


def _pool_with_indices(recording: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    """Return the values of a max-pool and the positions, which nobody may use."""
    pool = getattr(F, func.__name__.removesuffix("_with_indices"))
    plain = {key: value for key, value in kwargs.items() if key != "return_indices"}
    values = recording.function(pool, args, plain)
    other = recording.known[id(values)].other
    positions = torch.empty_like(values, dtype=torch.long)
    recording.know(positions, torch.empty_like(other, dtype=torch.long), _positions)
    return values, positions


def _positions() -> Node:
    raise RefusedError("uses the positions of maxima, which spikes do not carry.", "Use the values alone.")


def _where(recording: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    """Return a choice; ``where(x > t, x, v)`` is ``F.threshold(x, t, v)``, and with any comparison one function."""
    if func is Tensor.where and len(args) > 1:  # x.where(condition, other)
        args = (args[1], args[0], *args[2:])
    func = torch.where
    args, kwargs = (*args, *(kwargs[name] for name in ("condition", "input", "other") if name in kwargs)), {}
    if len(args) == 3 and isinstance(args[0], Tensor) and recording.depends(args[0]):
        condition, x, other = recording.known[id(args[0])].node(), args[1], args[2]
        fill = recording.fills.get(id(other), other) if isinstance(other, Tensor) else other
        level = condition.args[1] if len(condition.args) == 2 else None
        above = condition.target is operator.gt or (condition.target is operator.ge and level == 0)
        known = recording.known.get(id(x)) if isinstance(x, Tensor) else None
        if above and known is not None and condition.args[0] is known.node() and isinstance(level, int | float):
            if isinstance(fill, int | float):
                return recording.function(F.threshold, (x, level, fill), {})
        if id(args[0]) in recording.compared:
            return recording.function(where_compared, (*recording.compared[id(args[0])], x, other), {})
    return recording.function(func, args, kwargs)


def _compare(recording: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    """Return a condition, and remember what is compared: ``where`` needs it."""
    found = recording.function(func, args, kwargs)
    if isinstance(found, Tensor) and len(args) == 2:
        recording.compared[id(found)] = (func.__name__.strip("_"), *args)
    return found


def _masked_fill(recording: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    """Return ``where(mask, value, x)``, as a product and a sum with numbers where the mask is made of indices."""
    x, mask, value = (*args, *kwargs.values())
    compared = recording.compared.get(id(mask), ())
    rates = any(isinstance(each, Tensor) and each.is_floating_point() for each in compared)
    if rates or not isinstance(value, int | float) or not (recording.depends(mask) and recording.depends(x)):
        return _where(recording, torch.where, (mask, value, x), {})

    def chosen(masked: float, kept: float) -> Any:
        numbers = (torch.full((), each, dtype=x.dtype, device=recording.device) for each in (masked, kept))
        return recording.function(torch.where, (mask, *numbers), {})

    if value != -math.inf:
        x = recording.function(torch.mul, (x, chosen(0.0, 1.0)), {})
    return x if value == 0 else recording.function(torch.add, (x, chosen(float(value), 0.0)), {})


def _new_tensor(recording: Recording, func: Any, args: Any, kwargs: Any) -> Tensor:
    return torch.as_tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype), device=recording.device).clone()


def _constructor(recording: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    return _filled(recording, func, args, kwargs, _CONSTRUCTORS[func.__name__])


def _full(recording: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    fill = kwargs.get("fill_value", args[-1])
    if not isinstance(fill, int | float):
        return recording.function(func, args, kwargs)
    return _filled(recording, func, args, kwargs, fill)


def _filled(recording: Recording, func: Any, args: Any, kwargs: Any, fill: float) -> Tensor:
    """Return a tensor of one value: a constant, expanded to the batch where its shape holds the batch size."""
    kwargs = {key: value for key, value in kwargs.items() if key != "device"}
    hollow = {**kwargs, "device": "meta"}
    first = func(*recording.at(args, other=False), **recording.at(hollow, other=False))
    other = func(*recording.at(args, other=True), **recording.at(hollow, other=True))
    if first.shape == other.shape:
        return torch.full(first.shape, fill, dtype=first.dtype, device=recording.device)
    if func.__name__.endswith("_like"):
        sizes = _size(recording, None, args[:1], {})
    else:
        numbers = [v for v in leaves_of((args, kwargs)) if isinstance(v, int) and not isinstance(v, bool)]
        sizes = numbers[: first.dim()]
    one = torch.full([1] * first.dim(), fill, dtype=first.dtype, device=recording.device)
    expanded = recording.note("call_method", "expand", (one, *sizes), {}, _shell_of(recording, "expand"))
    filled = recording.function(Tensor.clone, (expanded,), {})  # others may write into it
    recording.fills[id(filled)] = fill
    return filled


def _shell_of(recording: Recording, method: str) -> Callable[..., Any]:
    return lambda *args: meta_device.call(method_called(method), args, {}, recording.device)


def _assign(recording: Recording, func: Any, args: Any, kwargs: Any) -> None:
    """Make ``x[index] = value`` a function; other views of x do not see it, and are refused when they are used."""
    tensor, index, value = args
    known = recording.known.get(id(tensor))
    if known is None or known.constant:
        raise RefusedError("writes data into a tensor that the network keeps.", "Build it with torch.cat.")
    if _is_part(recording, tensor, index, value):
        return
    if isinstance(index, Tensor) and recording.depends(index):
        chosen = _where(recording, torch.where, (index, value, tensor), {})
        node = recording.known[id(chosen)].node()
        _rewritten(recording, tensor, node)
        return
    copy, other = tensor, known.other
    for owner, twin in ((copy, False), (other, True)):
        position, given = recording.at((index, value), twin)
        with_item(owner, position, meta_device.shell(given) if isinstance(given, Tensor) else given)
    _rewritten(recording, tensor, recording.create("call_function", with_item, (tensor, index, value), {}))


def _is_part(recording: Recording, tensor: Tensor, index: Any, value: Any) -> bool:
    """Return whether ``value`` is the very view ``tensor[index]``, as where ``x[i] *= 2`` assigns what it changed."""
    if not isinstance(value, Tensor):
        return False
    part = tensor[recording.at(index, other=False)]
    return _place_of(part) == _place_of(value)


def _place_of(tensor: Tensor) -> tuple[Any, ...]:
    memory = tensor.untyped_storage()._cdata  # noqa: SLF001 (the only name of memory without an address)
    return memory, tensor.storage_offset(), tensor.shape, tensor.stride()


def _turned(recording: Recording, func: Any, args: Any, kwargs: Any) -> Tensor:
    """Give a tensor itself another shape, as ``x.squeeze_(1)`` does: it stands for ``x.squeeze(1)`` from here on."""
    tensor = args[0]
    known = recording.known.get(id(tensor))
    if known is None or known.constant:
        raise RefusedError("changes the shape of a tensor that the network keeps.", "Compute a new tensor instead.")
    node = recording.create("call_method", func.__name__[:-1], args, kwargs)
    for owner, twin in ((tensor, False), (known.other, True)):
        func(owner, *recording.at(args[1:], twin), **recording.at(kwargs, twin))
    known.make = lambda: node
    return tensor


def _overwritten(recording: Recording, func: Any, args: Any, kwargs: Any) -> Tensor:
    """Write what a function returns over its tensor: ``x.masked_fill_(...)`` is ``x.copy_(x.masked_fill(...))``."""
    name = func.__name__[:-1]
    if name in ("zero", "fill"):
        value = _full(recording, torch.full_like, (args[0], *(args[1:] or kwargs.values() or (0.0,))), {})
    elif name in SPECIAL:
        value = SPECIAL[name](recording, getattr(Tensor, name), args, kwargs)
    else:
        value = recording.defined(DEFINITIONS[name], args, kwargs)
    return recording.function(Tensor.copy_, (args[0], value), {})


def _rewritten(recording: Recording, tensor: Tensor, node: Node) -> None:
    """Let ``tensor`` stand for ``node`` from here on; other views of its memory are refused when they are used."""
    memory = tensor.untyped_storage()._cdata  # noqa: SLF001 (the only name of memory without an address)
    for each in recording.known.values():
        if each.tensor is not tensor and each.tensor.untyped_storage()._cdata == memory:  # noqa: SLF001
            each.make = _stale
    recording.known[id(tensor)].make = lambda: node


def _stale() -> Node:
    raise RefusedError(
        "uses a view of a tensor after a part of the tensor was assigned.", "Build the tensor with torch.cat."
    )


SPECIAL: Mapping[str, Callable[[Recording, Any, Any, Any], Any]] = MappingProxyType({
    "size": _size, "to": _to, "type_as": _type_as, "cpu": _move, "cuda": _move,
    "__setitem__": _assign, "__reversed__": _reverse, "max": _extreme, "min": _extreme, "where": _where,
    "masked_fill": _masked_fill, "max_pool1d_with_indices": _pool_with_indices,
    "max_pool2d_with_indices": _pool_with_indices, "max_pool3d_with_indices": _pool_with_indices,
    "adaptive_max_pool1d_with_indices": _pool_with_indices, "adaptive_max_pool2d_with_indices": _pool_with_indices,
    "adaptive_max_pool3d_with_indices": _pool_with_indices,
    **dict.fromkeys(("gt", "ge", "lt", "le", "greater", "less", "greater_equal", "less_equal"), _compare),
    "new_tensor": _new_tensor, "full": _full, "full_like": _full, "new_full": _full,
    **CONTRACTIONS,
    **dict.fromkeys(_CONSTRUCTORS, _constructor),
    **dict.fromkeys(("squeeze_", "unsqueeze_", "transpose_", "swapaxes_", "swapdims_", "t_"), _turned),
    **dict.fromkeys(("zero_", "fill_", "masked_fill_", *(f"{name}_" for name in DEFINITIONS)), _overwritten),
})  # fmt: skip
