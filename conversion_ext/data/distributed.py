"""Several processes, one result: what the processes of torch.distributed's default group tell each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import Tensor, distributed

from conversion_ext.errors import ConversionError

__all__ = ["added", "all_or_none", "gathered", "greatest", "merged", "processes", "rank"]

Value = TypeVar("Value")


def processes() -> int:
    """Return how many processes work together: 1 unless torch.distributed's default group has been initialized."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0; process 0 is the one that talks to the user."""
    return distributed.get_rank() if processes() > 1 else 0


def gathered(value: Value) -> list[Value]:
    """Return the values of all processes in order of rank; all of them must call this.

    Raises ConversionError where another process has died or does not answer within the group's timeout.
    """
    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    _together(lambda: distributed.all_gather_object(values, value))
    return values


def added(value: Tensor) -> Tensor:
    """Put the sum over all processes into ``value`` and return it; all of them must call this, with equal shapes."""
    return _reduced(value, "SUM")


def greatest(value: Tensor) -> Tensor:
    """Put the maximum of each entry over all processes into ``value`` and return it, as ``added`` does with sums."""
    return _reduced(value, "MAX")


def merged(value: Value) -> Value:
    """Return ``value`` with what all other processes have merged into it."""
    first, *others = gathered(value)
    for other in others:
        cast(Any, first).merge(other)
    return first


def all_or_none(action: Callable[[], Value]) -> Value:
    """Return what ``action`` returns here; where it raises in one process, raise in every process."""
    if processes() == 1:
        return action()
    result, failure = None, None
    try:
        result = action()
    except Exception as error:  # whatever it is, the others must not wait for this process
        failure = error
    messages = gathered(None if failure is None else str(failure))
    if failure is not None:
        raise failure
    for number, message in enumerate(messages):
        if message is not None:
            raise ConversionError(f"Process {number} of {len(messages)} failed: {message}")
    return result  # type: ignore[return-value]


def _reduced(value: Tensor, operation: str) -> Tensor:
    if processes() > 1:
        # NCCL by itself reaches no tensor on the CPU, where sums of numbers are, and of processes without data.
        nccl_alone = value.device.type == "cpu" and distributed.get_backend() == "nccl"
        place = value.cuda() if nccl_alone else value
        _together(lambda: distributed.all_reduce(place, getattr(distributed.ReduceOp, operation)))
        if place is not value:
            value.copy_(place)
    return value


def _together(action: Callable[[], object]) -> None:
    """Do what needs every process."""
    try:
        action()
    except RuntimeError as error:
        raise ConversionError(
            f"Process {rank()} of {processes()} waited in vain for the others: one has died or has "
            f"raised an error of its own; look for it in their output, and start all of them again. ({error})"
        ) from error
