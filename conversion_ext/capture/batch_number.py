"""Batch sizes as integers that remember where they come from."""

from __future__ import annotations

import builtins
import functools
import math
import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor
from torch.fx import Node

__all__ = ["BatchNumber", "Numbers", "lengths_as_sizes"]

_LEN, _LOCK, _USERS = builtins.len, threading.Lock(), list[None]()


class Numbers(Protocol):
    """What makes nodes of numbers: the recording that a number belongs to."""

    def compute(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> Node:
        """Return the node of ``function(*operands)``."""
        ...

    def undecided(self) -> Exception:
        """Return the error of a network whose course depends on the batch size."""
        ...


class BatchNumber(int):
    """A number that changes with the batch size: its value for the example, ``other`` for a batch of another size.

    Arithmetic gives numbers of the same kind, and ``node()`` makes their nodes when somebody uses them. A comparison
    that both batch sizes answer alike is a plain bool; any other is refused.
    """

    other: int
    owner: Numbers
    make: Callable[[], Node]

    def __new__(cls, value: int, other: int, owner: Numbers, make: Callable[[], Node]) -> BatchNumber:
        """Return the number ``value``, ``other`` at the other batch size."""
        number = super().__new__(cls, value)
        number.other, number.owner, number.make = other, owner, make
        return number

    # Without a hash no cache of shapes hands a number of this recording to another one.
    __hash__ = None  # type: ignore[assignment]

    def node(self) -> Node:
        """Return the node whose value this number is."""
        made = self.make()
        self.make = lambda: made
        return made

    def __deepcopy__(self, memo: Any) -> BatchNumber:
        return self

    def __reduce__(self) -> Any:
        return int, (int(self),)


def _combine(function: Callable[..., Any], *operands: Any) -> Any:
    """Return ``function`` of numbers, some of which change with the batch size."""
    number = next(value for value in operands if isinstance(value, BatchNumber))
    first = function(*(int(v) if isinstance(v, BatchNumber) else v for v in operands))
    other = function(*(v.other if isinstance(v, BatchNumber) else v for v in operands))
    if first is NotImplemented or (type(first) is type(other) and first == other):
        return first
    if isinstance(first, bool) or not isinstance(first, int) or not isinstance(other, int):
        raise number.owner.undecided()
    return BatchNumber(first, other, number.owner, lambda: number.owner.compute(function, operands))


def _binary(function: Callable[..., Any], swapped: bool) -> Callable[[Any, Any], Any]:
    def method(self: BatchNumber, other: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented
        return _combine(function, other, self) if swapped else _combine(function, self, other)

    return method


def _unary(self: BatchNumber, function: Callable[[Any], Any]) -> Any:
    return _combine(function, self)


for _name in ("add", "sub", "mul", "floordiv", "mod", "pow", "truediv"):
    setattr(BatchNumber, f"__{_name}__", _binary(getattr(operator, _name), swapped=False))
    setattr(BatchNumber, f"__r{_name}__", _binary(getattr(operator, _name), swapped=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(BatchNumber, f"__{_name}__", _binary(getattr(operator, _name), swapped=False))
for _name in ("neg", "pos", "abs"):
    setattr(BatchNumber, f"__{_name}__", functools.partialmethod(_unary, getattr(operator, _name)))
BatchNumber.__bool__ = lambda self: _combine(bool, self)
BatchNumber.__ceil__ = lambda self: _combine(math.ceil, self)


@contextmanager
def lengths_as_sizes() -> Iterator[None]:
    """Let ``len(x)`` of a tensor return ``x.shape[0]`` meanwhile; the builtin makes a plain integer of any number.

    In all threads at once, since there is one builtin; of what is no tensor, and outside of a recording, it is as ever.
    """
    with _LOCK:
        _USERS.append(None)
        builtins.len = _length
    try:
        yield
    finally:
        with _LOCK:
            _USERS.pop()
            builtins.len = _length if _USERS else _LEN


def _length(value: Any, /) -> int:
    if isinstance(value, Tensor) and type(value).__len__ is Tensor.__len__ and value.dim():
        return value.shape[0]
    return _LEN(value)
