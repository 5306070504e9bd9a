"""Neurons with a gradient, in plain torch: the same numbers in every framework."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from conversion_ext.backends.base import initial_potential
from conversion_ext.backends.reference import heaviside
from conversion_ext.network.stepping import Neurons, Stepping
from conversion_ext.neurons import IF, Neuron
from conversion_ext.neurons.base import State
from conversion_ext.types import Reset

__all__ = ["SurrogateStepping"]


class SurrogateStepping(Stepping):
    """Step neurons as their value defines them, each spike with the gradient ``1 / (1 + (pi z)^2)``, z its distance.

    Use it where weights descend on what neurons emit. Of IF neurons with soft reset the reset is a constant to the
    gradient, and all steps are one function of autograd, which keeps one tensor for the backward pass.

    Reference: Fang et al., ICCV 2021 (arctan as surrogate).
    """

    state_names = ("held",)
    held: State | None

    def steps(self, neurons: Neurons, z_seq: Tensor) -> Tensor:
        """Return the spikes for z_seq [T, N, ...]."""
        return neurons.run(z_seq, by=lambda currents, start: self._run(neurons.spec, currents, start))

    def _run(self, spec: Neuron, z_seq: Tensor, start: Tensor) -> Tensor:
        if self.held is None:
            self.held = spec.start(initial_potential(start, z_seq[0]))
        if type(spec) is IF and spec.stock and spec.reset is Reset.SUBTRACT:
            spikes, v = _SoftReset.apply(z_seq, self.held[0])
            self.held = (v,)
            return spikes
        emitted = []
        for z in z_seq:
            s, self.held = spec.step(z, self.held, heaviside)
            emitted.append(s)
        return torch.stack(emitted).to(z_seq.dtype)


class _SoftReset(torch.autograd.Function):
    """Spikes [T, N, ...] and last potential [N, ...] of IF neurons for currents z_seq and a first potential v."""

    @staticmethod
    def forward(ctx: Any, z_seq: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        distance = torch.empty(z_seq.shape, dtype=v.dtype, device=v.device)
        spikes = torch.empty_like(distance)
        for t, z in enumerate(z_seq):
            m = v + z
            torch.sub(m, 1, out=distance[t])
            torch.ge(distance[t], 0, out=spikes[t])
            v = m - spikes[t]
        ctx.save_for_backward(distance)
        ctx.dtype = z_seq.dtype
        return spikes.to(z_seq.dtype), v

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (distance,) = ctx.saved_tensors
        spikes, last = grad_outputs
        # dv_t/dz_j = 1 for j <= t: the gradient of a current is that of all later spikes, and of the last potential.
        grad = _slope(distance).mul_(spikes)
        grad[-1] += last
        for t in range(len(grad) - 2, -1, -1):
            grad[t] += grad[t + 1]
        return grad.to(ctx.dtype), grad[0]


def _slope(z: Tensor) -> Tensor:
    return (torch.pi * z).square_().add_(1).reciprocal_()
