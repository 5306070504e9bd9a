"""TSSL-BP: gradients of spikes by their times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.stepping import Neurons, Stepping
from conversion_ext.neurons import IF, LIF, Neuron
from conversion_ext.training.gradients.base import register_gradient
from conversion_ext.training.gradients.rate import WholeTrains
from conversion_ext.types import Reset

__all__ = ["TSSLBP"]

STEEPEST = 8.0  # a potential that hardly rose says little about when it crossed the threshold
WIDTH = 0.2  # of the sigmoid for neurons that are nearly silent, in units of the threshold


@dataclass(frozen=True)
class TSSLBP(WholeTrains):
    """TSSL-BP: a spike has the gradient of its time, ``ds/du = clamp(1 / (u[t] - v[t-1]), 0, 8)``.

    A potential u that ends higher crossed the threshold earlier. The gradient goes on to u[t+1] through what the reset
    leaves of u[t] and through what an earlier spike takes away. While the trace ``a = a + (s - a) / tau`` of a neuron
    is below ``1 / (4 tau)`` it is nearly silent, and a step has the derivative of a sigmoid of width 0.2 instead,
    with no gradient from later ones.

    The paper's network is LIF with hard reset, whose spikes are filtered with the time constant tau; there the
    gradient is that of the authors' code. Spikes of a converted network reach the next layer at once, ``tau = 1``.
    For IF and LIF with either reset, in every backend; initial potentials are not learned by it.

    Reference: Zhang, Li, NeurIPS 2020 (temporal spike sequence learning).
    """

    tau: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            isinstance(self.tau, float | int) and 1 <= self.tau < torch.inf,
            f"TSSLBP(tau={self.tau!r}): the time constant of the trace is a number of steps >= 1.",
        )

    def check(self, site: SpikingSite) -> None:
        """Raise for a site whose neurons have no such gradient."""
        require(
            site.neurons == 1 and site.spec.weights is None,
            f"{self} takes a site for one train of equal spikes, and {site.key} sends copies or weights; use "
            "ThroughTime() or DSR().",
        )

    def stepping(self, spec: Neuron) -> Stepping:
        """Return spikes with the gradients of their times."""
        require(
            (type(spec) is IF and spec.floor is None) or type(spec) is LIF,
            f"{self} is for IF and LIF neurons without a floor, and here they are {spec}; use another gradient.",
        )
        assert isinstance(spec, IF | LIF)
        soft = spec.reset is Reset.SUBTRACT
        if isinstance(spec, LIF):
            return SpikeTimes(1 / spec.tau, 1 / spec.tau if spec.decay_input else 1.0, soft, self.tau)
        return SpikeTimes(0.0, 1.0, soft, self.tau)


class SpikeTimes(Stepping):
    """Spikes with the gradients of their times.

    Neurons lose ``leak`` of their potential in a step and get ``share`` of a current; ``tau`` is that of the trace.
    """

    def __init__(self, leak: float, share: float, soft: bool, tau: float) -> None:
        super().__init__()
        self.leak, self.share, self.soft, self.tau = leak, share, soft, tau

    def steps(self, neurons: Neurons, z_seq: Tensor) -> Tensor:
        """Return the spikes for z_seq [T, N, ...]."""
        v = neurons.potential
        v = (neurons.start(z_seq[0]) if v is None else v).detach()
        with torch.no_grad():
            s_seq = neurons.run(z_seq)
        return _SpikeTimes.apply(self.share * z_seq, s_seq, v, self.leak, self.soft, self.tau)


class _SpikeTimes(torch.autograd.Function):
    """Spikes s_seq of neurons charged with x_seq [T, N, ...] from the potential v, differentiated by spike times."""

    @staticmethod
    def forward(ctx: Any, x_seq: Tensor, s_seq: Tensor, v: Tensor, leak: float, soft: bool, tau: float) -> Tensor:
        before, rises, traces = [], [], []  # u[t], u[t] - v[t-1], a[t]
        a = torch.zeros_like(v)
        for x, s in zip(x_seq.to(v.dtype), s_seq.to(v.dtype), strict=True):
            rise = x - leak * v
            u = v + rise
            v = u - s if soft else u * (1 - s)
            a = a + (s - a) / tau
            before.append(u)
            rises.append(rise)
            traces.append(a)
        ctx.save_for_backward(s_seq, torch.stack(before), torch.stack(rises), torch.stack(traces))
        ctx.leak, ctx.soft, ctx.tau = leak, soft, tau
        return s_seq.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        s_seq, u_seq, rises, traces = ctx.saved_tensors
        grad_s = grad_outputs[0].to(u_seq.dtype)
        s_seq = s_seq.to(u_seq.dtype)
        earlier = (1 / rises).clamp(0, STEEPEST) * s_seq  # -dt/du: by how much a higher potential advances the spike
        kept = 1.0 if ctx.soft else 1 - s_seq
        taken = 1.0 if ctx.soft else u_seq
        # What u[t] does to u[t+1]: it stays, and a spike that comes earlier takes away what has longer to leak.
        onward = (1 - ctx.leak) * kept + ctx.leak * taken * earlier
        onward = torch.as_tensor(onward).expand_as(u_seq)
        grads: list[Tensor] = []
        later = torch.zeros_like(u_seq[0])
        for t in reversed(range(len(u_seq))):
            later = grad_s[t] * earlier[t] + later * onward[t]
            grads.append(later)
        f = ((1 - u_seq) / WIDTH).clamp(-8, 8).exp()
        silent = traces < 1 / (4 * ctx.tau)
        grad = torch.where(silent, grad_s * f / ((1 + f).square() * WIDTH), torch.stack(grads[::-1]))
        return grad.to(grad_outputs[0].dtype), None, None, None, None, None


register_gradient("tssl-bp", TSSLBP())
