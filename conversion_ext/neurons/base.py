"""The contract of a neuron: a frozen value with its dynamics, threshold 1."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.types import Family

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Heaviside", "Neuron", "State"]

State = tuple[Tensor, ...]
"""What a neuron remembers, each [N, ...], in the order of ``Neuron.state``: the potential comes first."""

Heaviside = Callable[[Tensor], Tensor]
"""``z -> [z >= 0]`` in the dtype of z, with the surrogate gradient of a framework."""


@dataclass(frozen=True)
class Neuron:
    """Base of all neuron values. ``v_init`` is the potential before the first step, in units of the threshold.

    A subclass that defines ``step`` (and names in ``state`` what it remembers beside the potential; such
    variables start from 0) works in every backend.
    """

    v_init: float = 0.5

    @property
    def state(self) -> tuple[str, ...]:
        """What it remembers, the potential first."""
        return ("v",)

    @property
    def family(self) -> Family:
        """The values its spikes take."""
        return Family.BINARY

    @property
    def levels(self) -> int:
        """The most spikes of one step: T steps tell ``T * levels + 1`` activations apart."""
        return 1

    @property
    def lowest(self) -> int:
        """The least that it says on average, in spikes per step."""
        return 0

    @property
    def learned(self) -> tuple[str, ...]:
        """The fields, numbers in [0, 1], that only start a parameter of its module, which training may change."""
        return ()

    def holding(self, module: Any) -> Self:
        """Return this neuron with what ``module`` has ``learned`` in its fields, tensors [], for ``step``."""
        if not self.learned:
            return self
        held = copy.copy(self)
        for name in self.learned:
            value = getattr(module, name)
            # What training moved beyond an end counts as the end, with a gradient that can bring it back.
            object.__setattr__(held, name, value + (value.clamp(0, 1) - value).detach())
        return held

    def hosting(self, neuron: Neuron) -> Neuron:
        """Return the neuron of a site whose activation was trained for ``neuron``: that one, unless this adds to it."""
        return neuron

    def step(self, x: Tensor, state: State, heaviside: Heaviside) -> tuple[Tensor, State]:
        """Return spikes and new state for input x, all [N, ...] in the dtype of the state; a pure function."""
        raise TypeError(f"{type(self).__name__} must define step().")

    def _require_fraction(self) -> None:
        require(
            isinstance(self.v_init, Real) and 0 <= self.v_init < 1,
            f"{type(self).__name__}(v_init={self.v_init!r}): the initial potential is a fraction of the threshold "
            "in [0, 1).",
        )
