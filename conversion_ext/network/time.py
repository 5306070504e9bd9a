"""Modules that add or remove the time axis inside a converted network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from conversion_ext.types import Steps

__all__ = ["ExpandTime", "Function"]


class ExpandTime(nn.Module):
    """Repeat what does not depend on time, [N, ...] -> [T*N, ...]; a sequence already is [T*N, ...]."""

    def forward(self, x: Tensor, steps: Steps) -> Tensor:
        """Return x for each of the steps."""
        return x.unsqueeze(0).expand(steps.T, *x.shape).flatten(0, 1) if steps.constant else x


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
