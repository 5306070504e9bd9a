"""The contract of a neuron: a frozen value with its dynamics, threshold 1."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.types import Family

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Heaviside", "Neuron", "State", "require_lookahead"]

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
    def levels(self) -> float:
        """The most that a step emits on average, in spikes: T steps have ``T * levels + 1`` levels."""
        return 1

    @property
    def ahead(self) -> int:
        """How many steps a site of such neurons lags behind its input, to know more of it before it fires."""
        return 0

    @property
    def members(self) -> int:
        """How many neurons it is: of two, [N, 2, ...], the second takes away what the first sends."""
        return 1

    @property
    def weights(self) -> tuple[int, ...] | None:
        """What a spike is worth at each step of a run; None: 1 at all."""
        return None

    def timed(self, T: int | None) -> Self:
        """Return this neuron for runs of T steps (None: any); raise where it is one for runs of another length."""
        return self

    def start(self, v: Tensor) -> State:
        """Return what the neuron remembers before its first step, with the potential ``v`` [N, ...]."""
        return (v, *(torch.zeros_like(v) for _ in self.state[1:]))

    @property
    def lowest(self) -> float:
        """The least that it emits on average, in spikes per step."""
        return 0

    @property
    def learned(self) -> tuple[str, ...]:
        """Names of fields that become trainable parameters (values in [0, 1]); the field gives the initial value."""
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


def require_lookahead(name: str, lookahead: object) -> None:
    """Raise ValueError unless ``lookahead`` is a number of steps."""
    require(
        isinstance(lookahead, int) and not isinstance(lookahead, bool) and lookahead >= 0,
        f"{name}(lookahead={lookahead!r}): give the number of steps by which a site lags behind its input, an integer "
        ">= 0.",
    )
