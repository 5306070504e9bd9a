"""The contract of a tuner: it corrects a spiking network against its ANN on calibration data, before folding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from conversion_ext import graph
from conversion_ext.neurons import IF, Neuron
from conversion_ext.nn.site import SpikingSite, depths
from conversion_ext.nn.stepping import Stepping
from conversion_ext.registry import Registry
from conversion_ext.types import Reset

__all__ = ["Task", "Tuner", "integrates_and_fires", "register_tuner", "set_stepping", "tuners"]


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

    @property
    def needs_calibration(self) -> bool:
        """Whether it works on calibration data, and then for a number of steps T."""
        return True

    def check(self, neuron: Neuron) -> None:
        """Raise unless it can work with the neurons of a recipe."""

    def tune(self, task: Task) -> None:
        """Change ``task.body`` in place."""
        raise TypeError(f"{type(self).__name__} must define tune().")

    def stepping(self, site: SpikingSite, depth: int) -> Stepping:
        """Return how the neurons of ``site`` are stepped while simulating; by default as they are.

        ``depth`` counts the sites on the longest chain from an input, the site itself included.
        """
        return site.stepping


def integrates_and_fires(neuron: Neuron) -> bool:
    """Return whether ``neuron`` is IF with soft reset, whose potential and count together are the sum of its input."""
    return type(neuron) is IF and neuron.reset is Reset.SUBTRACT


def set_stepping(body: GraphModule, tuners: Sequence[Tuner]) -> None:
    """Let the tuners that act while simulating decide how the sites of ``body`` are stepped."""
    places = depths(body)
    for _, site in graph.modules_called(body, SpikingSite):
        for tuner in tuners:
            site.stepping = tuner.stepping(site, places[site.key])


tuners: Registry[type[Tuner]] = Registry("tuner")


def register_tuner(name: str, tuner: type[Tuner]) -> type[Tuner]:
    """Add a tuner class under ``name``; it must work without arguments."""
    return tuners.register(name, tuner)
