"""COS: initial potentials shifted, sample by sample, so that neurons make one spike more or less."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from conversion_ext.errors import StateError, require
from conversion_ext.network.stepping import Neurons, Stepping
from conversion_ext.tuners.base import ResidualTuner, register_tuner

__all__ = ["OffsetSpike"]


@dataclass(frozen=True, kw_only=True)
class OffsetSpike(ResidualTuner):
    """Run ``rho`` steps at each site, shift initial potentials by what changes a wrong count by one spike, run anew.

    Use it when the network was trained with QCFS and latency may grow with depth.

    A site's input is what the corrected sites before it send. After rho steps with N spikes and potential v, a
    neuron with ``v < 0`` and N >= 1 made too many spikes, one with ``v >= 1`` too few. With A the least potential at
    which it fired (before the reset), B the greatest at which it did not (1000 and -1000 where there is none):

        v_init - max(1, A - 0.999)  if v < 0 and N >= 1;   v_init + max(1, 1.001 - B)  if v >= 1

    takes back its weakest spike, or adds one where it was nearest to firing. ``iterations`` repeats this for
    neurons that are off by more, measuring v against v_init as the start. Counts change by one spike per iteration,
    but for a neuron that fired at every step, which goes on to do so.

    A site runs iterations * rho steps beside its T; a chain of D sites decides after D * iterations * rho + T.
    T must be at least rho; outputs of earlier steps are prefixes (``at=``). Called step by step it raises.

    Reference: Hao, Ding, Bu, Huang, Yu, ICLR 2023.
    """

    rho: int = 4
    iterations: int = 1

    def __post_init__(self) -> None:
        for name in ("rho", "iterations"):
            value = getattr(self, name)
            require(
                isinstance(value, int) and value >= 1, f"OffsetSpike({name}={value!r}): give an integer number >= 1."
            )

    def stepping(self, depth: int) -> Stepping:
        """Return the two runs."""
        return Shifted(self.rho, self.iterations)


class Shifted(Stepping):
    """Run the first ``rho`` steps to find initial potentials, then all steps from these."""

    def __init__(self, rho: int, iterations: int) -> None:
        super().__init__()
        self.rho, self.iterations = rho, iterations
        self.lag_steps = rho * iterations

    @property
    def min_first_call(self) -> int:
        """The steps that the next call must hold."""
        return 1 if self.t else self.rho

    def steps(self, neurons: Neurons, z_seq: Tensor) -> Tensor:
        """Return the spikes from shifted initial potentials."""
        if self.t:
            return neurons.run(z_seq)
        if z_seq.shape[0] < self.rho:
            raise StateError(
                f"OffsetSpike looks at the first {self.rho} steps before it takes one, and was called with "
                f'{z_seq.shape[0]}; use cx.simulate or cx.evaluate, or step mode "m" with T >= {self.rho}.'
            )
        start = v_init = neurons.start(z_seq[0])
        for _ in range(self.iterations):
            v_init = self._shifted(neurons, z_seq[: self.rho], v_init, start)
        return neurons.run(z_seq, v_init)

    def _shifted(self, neurons: Neurons, z_seq: Tensor, v_init: Tensor, start: Tensor) -> Tensor:
        """Return ``v_init`` shifted where a run from it gives another count than ``start`` and the currents ask for."""
        v, count = v_init, torch.zeros_like(v_init)
        least, greatest = torch.full_like(v_init, 1000.0), torch.full_like(v_init, -1000.0)
        for z in z_seq:
            fired = neurons.run(z.unsqueeze(0), v_init).squeeze(0) > 0
            assert neurons.potential is not None
            v = neurons.potential
            count += fired
            least = torch.where(fired, torch.minimum(least, v + 1), least)
            greatest = torch.where(fired, greatest, torch.maximum(greatest, v))
        residual = v + (start - v_init)
        neurons.restart()
        surplus, lacking = (residual < 0) & (count >= 1), residual >= 1
        shift = torch.where(surplus, -(least - 0.999).clamp_min(1), (1.001 - greatest).clamp_min(1))
        return torch.where(surplus | lacking, v_init + shift, v_init)

    def extra_repr(self) -> str:
        """Show the steps and the iterations."""
        return f"rho={self.rho}, iterations={self.iterations}"


register_tuner("offset_spike", OffsetSpike)
