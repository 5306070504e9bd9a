"""A neuron over a sequence of steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from conversion_ext.neurons.base import Heaviside, Neuron, State
from conversion_ext.neurons.integrate_and_fire import IF
from conversion_ext.types import Reset

__all__ = ["advance"]

# Numbers of one state tensor that are taken through all their passes at once on a CPU: with currents, spikes and
# counts they stay in a cache of 1 MiB.
BLOCK = 1 << 16


def advance(
    spec: Neuron,
    x_seq: Tensor,
    state: State,
    heaviside: Heaviside,
    in_place: bool = False,
    count: Tensor | None = None,
    detach_reset: bool = False,
    overwrite: bool = False,
) -> tuple[Tensor, State]:
    """Advance ``spec`` over x_seq [T, N, ...]; return spikes in the dtype of x_seq and the new state.

    Args:
        spec: the neuron.
        x_seq: currents [T, N, ...], which are not changed unless ``overwrite``.
        state: its state, tensors [N, ...], the membrane potential first; not changed unless ``in_place``.
        heaviside: the step function, with the gradient that training wants.
        in_place: whether the tensors of ``state`` may be overwritten.
        count: numbers of spikes [N, ...], to which those of these steps are added, whatever their sign.
        detach_reset: let no gradient flow through what a spike does to the state.
        overwrite: whether spikes may take the place of the currents, which nobody else reads.

    Returns:
        Spikes [T, N, ...], and the state after the last step.
    """
    differentiable = torch.is_grad_enabled() and (x_seq.requires_grad or state[0].requires_grad)
    if type(spec) is IF and not differentiable:
        state = state if in_place else (state[0].clone(),)
        return _fire(spec, state[0], x_seq, count, overwrite), state
    if type(spec) is IF and spec.stock and spec.reset is Reset.SUBTRACT and detach_reset and count is None:
        above, v = Charge.apply(x_seq.to(state[0].dtype), state[0])
        return heaviside(above).to(x_seq.dtype), (v,)
    spikes: list[Tensor] = []
    for x in x_seq:
        before, charge = state, x.to(state[0].dtype)
        s, state = spec.step(charge, before, heaviside)
        if detach_reset and s.requires_grad:  # the state of a step whose spikes are constants
            state = spec.step(charge, before, lambda z: heaviside(z).detach())[1]
        spikes.append(s.to(x.dtype))
        if count is not None:
            count.add_(s.abs())
    return torch.stack(spikes), state


class Charge(torch.autograd.Function):
    """IF neurons with soft reset over x_seq [T, N, ...] from v [N, ...]: how far above threshold each step gets them.

    Returns [T, N, ...], and the potential at the end. Where the reset is a constant the potential of a step is the sum
    of the currents so far and a constant, so its gradient is a sum over the steps to come: no step need be recorded.
    """

    @staticmethod
    def forward(ctx: Any, x_seq: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Charge, fire, reset."""
        above, fired, v = torch.empty_like(x_seq), torch.empty_like(v), v.clone()
        one, zero = (torch.full((), value, dtype=v.dtype, device=v.device) for value in (1.0, 0.0))
        for x, z in zip(x_seq, above, strict=True):
            v.add_(x)
            torch.sub(v, one, out=z)
            torch.ge(z, zero, out=fired)
            v.sub_(fired)
        return above, v

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Add up from the last step to the first."""
        of_above, of_v = grad_outputs
        total, later = torch.empty_like(of_above), of_v
        for t in reversed(range(len(of_above))):
            later = torch.add(of_above[t], later, out=total[t])
        return total, later


def _fire(spec: IF, v: Tensor, x_seq: Tensor, count: Tensor | None, overwrite: bool) -> Tensor:
    """Advance the potential ``v`` of IF neurons in place, without autograd; return the spikes."""
    spikes = x_seq if overwrite else torch.empty_like(x_seq)
    fires = torch.gt if spec.strict else torch.ge
    one = torch.ones((), dtype=v.dtype, device=v.device)  # a number would be made a tensor at each comparison
    for x_part, v_part, s_part, c_part in _parts(x_seq, v, spikes, count):
        wide = x_part.to(v.dtype)  # arithmetic between two dtypes costs more than a conversion
        fired = s_part if wide is x_part else wide
        for x, s in zip(wide, fired, strict=True):
            v_part.add_(x)
            fires(v_part, one, out=s)
            if spec.reset is Reset.SUBTRACT:
                v_part.sub_(s)
            else:
                v_part.addcmul_(v_part, s, value=-1)  # v - v = 0 where it fired, exactly
            if spec.floor is not None:
                v_part.clamp_min_(spec.floor)
            if c_part is not None:  # now that it is in the cache
                c_part.add_(s)
        if wide is not x_part:
            s_part.copy_(fired)
    return spikes


def _parts(x_seq: Tensor, v: Tensor, spikes: Tensor, count: Tensor | None) -> Iterable[tuple[Any, ...]]:
    """Return slices of the batch that fit into a CPU's cache."""
    if v.numel() <= BLOCK or v.device.type != "cpu":
        return ((x_seq, v, spikes, count),)
    samples = max(1, BLOCK * len(v) // v.numel())
    v_parts = v.split(samples)
    counts = [None] * len(v_parts) if count is None else count.split(samples)
    return zip(x_seq.split(samples, 1), v_parts, spikes.split(samples, 1), counts, strict=True)
