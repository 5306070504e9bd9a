"""Leaky integrate and fire."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.neurons.base import Heaviside, Neuron, State
from conversion_ext.types import Reset

__all__ = ["LIF", "PLIF", "RefractoryLIF"]


@dataclass(frozen=True)
class LIF(Neuron):
    """Leak, charge, fire: ``m = v + (x - v) / tau`` or, without ``decay_input``, ``m = v - v / tau + x``; then as IF.

    Use it when the hardware or a further training asks for a leak; converted networks lose charge by it.

    SpikingJelly's ``LIFNode``; without ``decay_input``, ``beta = 1 - 1 / tau`` and hard reset snnTorch's ``Leaky``
    (whose soft reset subtracts after the next leak, ``beta v - s``, not before it). There is no refractory period, as
    in both; :class:`RefractoryLIF` has one. Its rate is no linear function of the input (with ``decay_input`` 0 up to a
    current of 1), so a ReLU network is not converted exactly: train with ``cx.nn.SoftLIF`` or fine-tune.

    With hard reset, ``decay_input`` and a constant input x > 1 from v = 0 it fires every n steps,
    ``n = ceil(log(1 - 1 / x) / log(1 - 1 / tau))``.
    """

    v_init: float = field(default=0.0, kw_only=True)
    tau: float = 2.0
    decay_input: bool = True
    reset: Reset = Reset.ZERO

    def __post_init__(self) -> None:
        require(isinstance(self.reset, Reset), f"LIF(reset={self.reset!r}): use Reset.SUBTRACT or Reset.ZERO.")
        require(
            isinstance(self.tau, Real) and 1 < self.tau < torch.inf,
            f"LIF(tau={self.tau!r}): the time constant is a number of steps > 1.",
        )
        self._require_fraction()

    def step(self, x: Tensor, state: State, heaviside: Heaviside) -> tuple[Tensor, State]:
        """Leak, charge, fire, reset."""
        v = state[0]
        m = v + (x - v) / self.tau if self.decay_input else v * (1 - 1 / self.tau) + x
        s = heaviside(m - 1)
        return s, ((m - s) if self.reset is Reset.SUBTRACT else m * (1 - s),)


@dataclass(frozen=True)
class PLIF(Neuron):
    """LIF whose leak is learned, one per site: ``m = beta v + x``, beta in [0, 1]; then as IF.

    Use it when a leak is to be learned in a training after the conversion.

    ``beta`` is what training starts from. The default 1 is IF, spike for spike, so PLIF takes the place of IF in any
    recipe, and ``finetune(..., learn=("weights", "neurons"))`` goes on from the converted network;
    ``beta = 1 - 1 / tau`` is LIF without ``decay_input``. In snnTorch it is ``Leaky(learn_beta=True)``, in SpikingJelly
    ``ParametricLIFNode``, which learns w, ``1 - beta = sigmoid(w)``: there beta = 1 is no value of w and has no
    gradient near it, so from that start the node is one of this package and learns beta itself, as all others do.

    Reference: Fang et al., ICCV 2021.
    """

    v_init: float = 0.5
    beta: float = 1.0
    reset: Reset = Reset.SUBTRACT

    def __post_init__(self) -> None:
        require(isinstance(self.reset, Reset), f"PLIF(reset={self.reset!r}): use Reset.SUBTRACT or Reset.ZERO.")
        require(
            isinstance(self.beta, Real) and 0 < self.beta <= 1,
            f"PLIF(beta={self.beta!r}): what is kept of v at a step is in (0, 1].",
        )
        self._require_fraction()

    @property
    def learned(self) -> tuple[str, ...]:
        """The share of v that is kept."""
        return ("beta",)

    def step(self, x: Tensor, state: State, heaviside: Heaviside) -> tuple[Tensor, State]:
        """Leak, charge, fire, reset."""
        m = state[0] * self.beta + x
        s = heaviside(m - 1)
        return s, ((m - s) if self.reset is Reset.SUBTRACT else m * (1 - s),)


@dataclass(frozen=True)
class RefractoryLIF(Neuron):
    """LIF integrated exactly, with a refractory period: ``tau dv/dt = j - v``, ``j = gain x + bias``, fires at v = 1.

    Use it when the network was trained with SoftLIF.

    Times are in steps. A spike at a time within a step (found from v at its end) sets v to 0 and holds it there for
    ``refractory`` steps, whatever part of a step that ends in. So a constant j > 1 gives the LIF rate
    ``1 / (refractory + tau log(1 + 1 / (j - 1)))`` spikes per step, to within one spike. v does not fall below 0.
    Neither framework has a refractory period: this is a ``MemoryModule`` of its own in SpikingJelly, a subclass of
    ``Leaky`` in snnTorch.

    Reference: Hunsberger, Eliasmith, arXiv:1611.05141; the dynamics are those of Nengo's ``LIF``.
    """

    v_init: float = field(default=0.0, kw_only=True)
    tau: float = 20.0
    refractory: float = 2.0
    gain: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        self._require_fraction()
        require(
            isinstance(self.tau, Real) and 0 < self.tau < torch.inf,
            f"RefractoryLIF(tau={self.tau!r}): the time constant is a positive number of steps.",
        )
        require(
            isinstance(self.refractory, Real) and 1 <= self.refractory < torch.inf,
            f"RefractoryLIF(refractory={self.refractory!r}): a neuron sends one spike per step, so the "
            "refractory period is 1 step or more.",
        )

    @property
    def state(self) -> tuple[str, ...]:
        """The potential, and the time until which it is held, counted from the end of the last step."""
        return ("v", "hold")

    def step(self, x: Tensor, state: State, heaviside: Heaviside) -> tuple[Tensor, State]:
        """Charge for what is left of the step, fire, find out when."""
        v, hold = state
        j = self.gain * x + self.bias
        m = v - (j - v) * torch.expm1(-(1 - hold).clamp(0, 1) / self.tau)
        s = heaviside(m - 1)
        # v fell from m to 1 backwards in time: exp(-late / tau) = (j - m) / (j - 1) for a spike `late` before the end.
        fired = m.detach() >= 1
        passed = ((m - 1) / (j - 1).clamp_min(1e-12)).detach().clamp(0, 1)
        late = (-self.tau * torch.log1p(-passed)).clamp_max(1)
        hold = torch.where(fired, self.refractory - late, hold - 1).clamp_min(0)
        return s, ((m * (1 - s)).clamp_min(0), hold)
