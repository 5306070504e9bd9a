"""A neuron over a sequence of steps."""

from __future__ import annotations

import torch
from torch import Tensor

from conversion_ext.neurons.base import Heaviside, Neuron, State
from conversion_ext.neurons.integrate_and_fire import IF
from conversion_ext.types import Reset

__all__ = ["advance"]


def advance(spec: Neuron, x_seq: Tensor, state: State, heaviside: Heaviside) -> tuple[Tensor, State]:
    """Advance ``spec`` over x_seq [T, N, ...]; return spikes in the dtype of x_seq and the new state.

    Changes neither ``x_seq`` nor ``state``.
    """
    differentiable = torch.is_grad_enabled() and (x_seq.requires_grad or state[0].requires_grad)
    if type(spec) is IF and not differentiable:
        return _advance_in_place(spec, x_seq, state[0])
    spikes: list[Tensor] = []
    for x in x_seq:
        s, state = spec.step(x.to(state[0].dtype), state, heaviside)
        spikes.append(s.to(x.dtype))
    return torch.stack(spikes), state


def _advance_in_place(spec: IF, x_seq: Tensor, v: Tensor) -> tuple[Tensor, State]:
    """Advance an IF neuron without autograd, in three passes over memory per step."""
    spikes = torch.empty_like(x_seq)
    for t, (x, s) in enumerate(zip(x_seq, spikes, strict=True)):
        # The first step makes a tensor of our own: the caller's v is then never written to.
        v = v.add_(x) if t else v + x
        torch.ge(v, 1, out=s)
        if spec.reset is Reset.SUBTRACT:
            v.sub_(s)
        else:
            v.addcmul_(v, s, value=-1)  # v - v = 0 where it fired, exactly
    return spikes, (v,)
