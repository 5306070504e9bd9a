"""Stand between a module of a private copy and its forward, without touching any class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["Step", "patched"]

Step = Callable[[nn.Module, str, Callable[..., Any], Any, Any], Any]
"""``step(module, path, forward, args, kwargs)`` in the place of ``forward(*args, **kwargs)``."""


@contextmanager
def patched(model: nn.Module, step_of: Callable[[nn.Module, str], Step]) -> Iterator[None]:
    """Let every module of ``model`` call ``step_of(module, path)`` in the place of its forward; hooks run around it.

    A module under several paths has the first one.
    """
    paths: dict[nn.Module, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, path)
    own = {module: vars(module).get("forward") for module in paths}
    try:
        for module, path in paths.items():
            module.forward = _bound(step_of(module, path), module, path, module.forward)
        yield
    finally:
        for module, forward in own.items():
            del module.forward
            if forward is not None:
                module.forward = forward


def _bound(step: Step, module: nn.Module, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: step(module, path, forward, args, kwargs)
