"""Synaptic filters."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from numbers import Real

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.neurons.base import Heaviside, Neuron, State
from conversion_ext.neurons.integrate_and_fire import IF
from conversion_ext.types import Family

__all__ = ["Filtered"]


@dataclass(frozen=True)
class Filtered(Neuron):
    """A neuron whose input current is low-pass filtered: ``c = a c + (1 - a) x`` with ``a = exp(-1 / tau)``.

    Use it around a neuron whose synapses are exponential or alpha functions.

    ``order=1`` is the exponential synapse ``h(t) = exp(-t / tau) / tau``; ``order=2``, two filters in a row, the alpha
    synapse ``h(t) = t exp(-t / tau) / tau^2``. Both pass a mean unchanged. Filtering the input of a neuron equals
    filtering every spike train that reaches it, since weights are linear and all synapses alike; spikes stay binary.
    A current starts from 0, so a constant input arrives late by ``order * tau`` steps.

    Reference: Hunsberger, Eliasmith, arXiv:1611.05141 (tau_s of 0 to 5 ms).
    """

    of: Neuron = field(default_factory=IF)
    tau: float = 5.0
    order: int = 1
    v_init: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(isinstance(self.of, Neuron), f"Filtered(of={self.of!r}): give a neuron such as LIF().", TypeError)
        require(
            self.of.ahead == 0 and self.of.weights is None,
            f"Filtered(of={self.of!r}): a filter smears what a site looks ahead to; give a neuron without look-ahead.",
        )
        require(
            isinstance(self.tau, Real) and 0 < self.tau < torch.inf,
            f"Filtered(tau={self.tau!r}): the time constant is a positive number of steps.",
        )
        require(self.order in (1, 2), f"Filtered(order={self.order!r}): 1 is an exponential, 2 an alpha synapse.")
        object.__setattr__(self, "v_init", self.of.v_init)

    @property
    def state(self) -> tuple[str, ...]:
        """What the neuron remembers, then the filters, the first of them first."""
        return (*self.of.state, *("current", "second_current")[: self.order])

    @property
    def family(self) -> Family:
        """The values its spikes take."""
        return self.of.family

    @property
    def levels(self) -> float:
        """The most spikes of one step."""
        return self.of.levels

    @property
    def lowest(self) -> float:
        """The least that the neuron emits on average, in spikes per step."""
        return self.of.lowest

    def hosting(self, neuron: Neuron) -> Neuron:
        """Return ``neuron`` behind this filter."""
        return replace(self, of=self.of.hosting(neuron))

    def step(self, x: Tensor, state: State, heaviside: Heaviside) -> tuple[Tensor, State]:
        """Filter, then let the neuron take the step."""
        inner, currents = state[: -self.order], state[-self.order :]
        share = -math.expm1(-1 / self.tau)
        filtered: list[Tensor] = []
        for current in currents:
            x = current + share * (x - current)
            filtered.append(x)
        s, inner = self.of.step(x, inner, heaviside)
        return s, (*inner, *filtered)
