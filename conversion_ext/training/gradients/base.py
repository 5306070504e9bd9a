"""How the gradient of a loss gets through time: rules as values, one loss or one for each part of the steps."""

# Annotations are objects, not text: fields are inherited, and a reader of a subclass looks up text in its own module.
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.neurons import Heaviside
from conversion_ext.registry import Registry
from conversion_ext.simulation.inputs import Presentation
from conversion_ext.training.student import Student
from conversion_ext.types import Steps

__all__ = ["Gradient", "Objective", "gradient_of", "gradients", "register_gradient"]

Objective = Callable[[Tensor, dict[str, Tensor]], Tensor]
"""``(outputs [T, N, C], {site: rates [N, ...]}) -> loss []``"""


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Base of all rules. ``losses`` runs a batch and yields losses, each to be back-propagated before the next.

    ``network`` is the student as it is to be called: ``network(inputs, steps)`` returns (outputs [T, N, C], {site:
    rates [N, ...]}); its state is reset. ``surrogate``: a name of the framework's surrogate functions, or a function
    ``z -> [z >= 0]`` that has a gradient, None for the framework's default; ``detach_reset``: no gradient goes through
    what a spike does to the potential.
    """

    surrogate: str | Heaviside | None = field(default=None, repr=False)
    detach_reset: bool = field(default=True, repr=False)

    def prepare(self, snn: SpikingNetwork) -> None:
        """Change the copy that is trained, once."""

    def presented(self, batch: Presentation) -> tuple[Any, Steps]:
        """Return the input of a batch and the steps in which it is run, over which BatchNorm takes its statistics."""
        return batch.steps(0, batch.T // batch.block, batch.block)

    def losses(
        self, network: Callable[..., Any], student: Student, batch: Presentation, objective: Objective
    ) -> Iterator[Tensor]:
        """Yield the losses of a batch."""
        raise TypeError(f"{type(self).__name__} must define losses().")


gradients: Registry[Gradient] = Registry(
    "gradient", lambda value: isinstance(value, Gradient), "an object of a class derived from Gradient"
)


def register_gradient(name: str, gradient: Gradient) -> Gradient:
    """Add a rule under ``name``, after which ``finetune(..., gradient=name)`` finds it."""
    return gradients.register(name, gradient)


def gradient_of(gradient: str | Gradient) -> Gradient:
    """Return the rule registered under a name, or the rule given."""
    if isinstance(gradient, str):
        return gradients.get(gradient)
    require(
        isinstance(gradient, Gradient),
        f"gradient={gradient!r}: give a name, {', '.join(gradients.names())}, or a value such as ThroughTime().",
        TypeError,
    )
    return gradient
