"""Modules that add or remove the time axis inside a converted network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from conversion_ext.nn.stateful import paced
from conversion_ext.types import Steps

__all__ = ["ExpandTime", "Function", "PacedConstant"]


class ExpandTime(nn.Module):
    """Repeat what does not depend on time, [N, ...] -> [T*N, ...]; a sequence already is [T*N, ...].

    ``pace``: as of ``Stateful``; then x comes in shares of T that are worth what the spikes of each step are.
    """

    pace: tuple[float, ...] | None = None

    def forward(self, x: Tensor, steps: Steps) -> Tensor:
        """Return x for each of the steps."""
        return paced(x, steps.T, None if steps.block > 1 else self.pace).flatten(0, 1) if steps.constant else x


class PacedConstant(nn.Module):
    """Let ``constant``, a part of x at every step, arrive in the shares of T that ``pace`` gives to the steps.

    ``constant`` is [1, ...], or [k, ...] where k rows of each sample are folded into the batch.
    """

    constant: Tensor

    def __init__(self, constant: Tensor, pace: tuple[float, ...]) -> None:
        super().__init__()
        self.pace = pace
        self.register_buffer("constant", constant)

    def forward(self, x: Tensor, steps: Steps) -> Tensor:
        """Return x [T*N, ...] with its constant part in other shares; a mean over all steps passes as it is."""
        if steps.block > 1:
            return x
        x_seq = x.unflatten(0, (steps.T, -1, len(self.constant)))
        return (x_seq + paced(self.constant, steps.T, self.pace).unsqueeze(1) - self.constant).view_as(x)


class Function(nn.Module):
    """A function, tensor method or module as a module of its data inputs, every other argument bound.

    ``template`` and ``keywords`` are the call's arguments with ``Slot(i)`` where data input i belongs.
    """

    class Slot(int):
        """The place of one data input."""

    def __init__(self, target: Any, template: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        super().__init__()
        self.target, self.template, self.keywords = target, template, keywords  # a module is registered by this

    def forward(self, *inputs: Tensor) -> Any:
        """Call the function on ``inputs``."""
        args, kwargs = (_fill(part, inputs) for part in (self.template, self.keywords))
        if isinstance(self.target, str):
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)

    def extra_repr(self) -> str:
        """Show what is called."""
        return self.target if isinstance(self.target, str) else getattr(self.target, "__name__", "")


def _fill(part: Any, inputs: tuple[Tensor, ...]) -> Any:
    if isinstance(part, Function.Slot):
        return inputs[part]
    if isinstance(part, dict):
        return {k: _fill(v, inputs) for k, v in part.items()}
    if isinstance(part, (list, tuple)):
        return type(part)(_fill(v, inputs) for v in part)
    return part
