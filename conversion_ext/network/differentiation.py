"""Neurons with a gradient, in plain torch: the same numbers in every framework."""

from __future__ import annotations

from collections.abc import Callable
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


SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "arctan": lambda z: (torch.pi * z).square_().add_(1).reciprocal_(),
    "triangle": lambda z: z.abs().neg_().add_(1).clamp_min_(0),
}
"""The derivative that is taken for that of a spike, of the distance from the threshold."""


class SurrogateStepping(Stepping):
    """Step neurons as their value defines them, each spike with a gradient: ``slope`` of its distance z.

    "arctan" is ``1 / (1 + (pi z)^2)``, "triangle" ``max(0, 1 - |z|)``. Use it where weights descend on what neurons
    emit. Of IF neurons with soft reset all steps are one function of autograd, which keeps one tensor for the backward
    pass. ``reset``: whether the gradient also goes through what a spike takes from the potential. With a slope that
    integrates to 1, as the triangle's does, the gradients of a current in all later spikes then add up to 1 at most, as
    the count of spikes asks for. Neurons of other kinds have the arctangent, and the gradient of their own ``step``.

    Reference: Fang et al., ICCV 2021 (arctan as surrogate); Bellec et al., NeurIPS 2018 (triangle).
    """

    state_names = ("held",)
    held: State | None

    def __init__(self, slope: str = "arctan", reset: bool = False) -> None:
        super().__init__()
        self.slope, self.through_reset = slope, reset

    def steps(self, neurons: Neurons, z_seq: Tensor) -> Tensor:
        """Return the spikes for z_seq [T, N, ...]."""
        return neurons.run(z_seq, by=lambda currents, start: self._run(neurons.spec, currents, start))

    def _run(self, spec: Neuron, z_seq: Tensor, start: Tensor) -> Tensor:
        if self.held is None:
            self.held = spec.start(initial_potential(start, z_seq[0]))
        if type(spec) is IF and spec.stock and spec.reset is Reset.SUBTRACT:
            spikes, v = _SoftReset.apply(z_seq, self.held[0], self.slope, self.through_reset)
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
    def forward(ctx: Any, z_seq: Tensor, v: Tensor, slope: str, reset: bool) -> tuple[Tensor, Tensor]:
        # Half precision is chosen for speed; otherwise potentials are as exact as they are in a simulation.
        dtype = z_seq.dtype if z_seq.dtype.itemsize < 4 else v.dtype
        ctx.set_materialize_grads(False)
        ctx.slope, ctx.reset, ctx.dtypes = slope, reset, (z_seq.dtype, v.dtype)
        first = z_seq[0]  # all steps lie in memory as one does, also where a constant current is expanded to them
        potentials = torch.empty_strided(
            z_seq.shape, (first.numel(), *torch.empty_like(first).stride()), dtype=dtype, device=z_seq.device
        )
        spikes = torch.empty_like(potentials)
        v = v.to(dtype)
        for t, z in enumerate(z_seq):
            torch.add(v, z, out=potentials[t])
            torch.ge(potentials[t], 1, out=spikes[t])
            v = potentials[t] - spikes[t]
        ctx.save_for_backward(potentials)
        return spikes.to(z_seq.dtype), v.to(ctx.dtypes[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
        (potentials,) = ctx.saved_tensors
        spikes, last = grad_outputs
        slope = SLOPES[ctx.slope](potentials - 1)
        grad = torch.zeros_like(slope) if spikes is None else slope * spikes
        coming = last  # dL/dv behind step t, for v = m - s and m = v + z
        for t in range(len(grad) - 1, -1, -1):
            if coming is not None:
                grad[t] += torch.addcmul(coming, coming, slope[t], value=-1) if ctx.reset else coming
            coming = grad[t]
        return grad.to(ctx.dtypes[0]), grad[0].to(ctx.dtypes[1]), None, None
