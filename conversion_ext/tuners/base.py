"""The contract of a tuner: it corrects a spiking network against its ANN on calibration data, before folding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from conversion_ext.registry import Registry

__all__ = ["Task", "Tuner", "register_tuner", "tuners"]


@dataclass(frozen=True)
class Task:
    """What a tuner works on: the ANN's graph, the spiking body made of it (unfolded), data, and T steps.

    ``batches`` can be read any number of times; ``inputs(batch)`` returns the positional inputs of the network.
    """

    ann: GraphModule
    body: GraphModule
    batches: Iterable[Any]
    inputs: Callable[[Any], tuple[Any, ...]]
    T: int
    progress: bool = True


@dataclass(frozen=True, kw_only=True)
class Tuner:
    """Base of all tuners: frozen values that work without arguments and take T from ``convert``.

    A tuner changes only what its docstring declares, and never makes its objective worse on the calibration data.
    """

    def tune(self, task: Task) -> None:
        """Change ``task.body`` in place."""
        raise TypeError(f"{type(self).__name__} must define tune().")


tuners: Registry[type[Tuner]] = Registry("tuner")


def register_tuner(name: str, tuner: type[Tuner]) -> type[Tuner]:
    """Add a tuner class under ``name``; it must work without arguments."""
    return tuners.register(name, tuner)
