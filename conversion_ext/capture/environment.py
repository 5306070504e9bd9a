"""The modes of torch in which a conversion runs, whatever the caller has switched on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import torch

__all__ = ["in_plain_modes"]

Function = TypeVar("Function", bound=Callable[..., Any])
DEVICES = ("cpu", "cuda", "mps", "xpu")


def in_plain_modes(function: Function) -> Function:
    """Let ``function`` run with gradients on, outside of inference mode and without autocast.

    A network converted in inference mode could not be trained, and autocast would round its thresholds.
    """

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as modes:
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.enable_grad())
            for device in DEVICES:
                if torch.is_autocast_enabled(device):
                    modes.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return plain  # type: ignore[return-value]
