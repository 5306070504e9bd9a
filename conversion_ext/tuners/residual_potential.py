"""SRP: neurons that fired although they should not have are silenced in a second run."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from conversion_ext.errors import StateError, require
from conversion_ext.network.stepping import Neurons, Stepping
from conversion_ext.tuners.base import ResidualTuner, register_tuner

__all__ = ["ResidualPotential"]

CRITERIA = ("paper", "exact")


@dataclass(frozen=True, kw_only=True)
class ResidualPotential(ResidualTuner):
    """Silence, in the T steps that count, every neuron whose potential after ``tau`` steps shows that it fired wrongly.

    Use it when the network was trained with QCFS and a few steps may run before those that count.

    The network first runs ``tau`` steps as it is. A site then lets those neurons spike for which, v being the potential
    left and N the spikes of these steps,

    - ``"paper"``: ``v > 1e-3``. Whoever fired although the sum of its currents rounds to 0 has v < 0 and is silenced;
      so is an active neuron with v <= 0, which can hurt for large tau.
    - ``"exact"``: ``v + N >= 1``, that is where the activation rounds to 1/tau or more, since with soft reset
      ``clamp(floor(v + N), 0, tau)`` is the activation in tau steps.

    Everything starts anew from v_init, and T steps follow in which the output of silenced neurons is 0 while their
    potential goes on. ``simulate`` decodes the T steps only; ``total_steps`` and ``latency_steps`` are tau + T.

    Reference: Hao, Bu, Ding, Huang, Yu, AAAI 2023 (arXiv 2302.02091); "exact" is ours.
    """

    tau: int = 4
    criterion: str = "paper"

    def __post_init__(self) -> None:
        require(
            isinstance(self.tau, int) and self.tau >= 1,
            f"ResidualPotential(tau={self.tau!r}): the pre-simulation takes an integer number of steps >= 1.",
        )
        require(
            self.criterion in CRITERIA,
            f"ResidualPotential(criterion={self.criterion!r}): choose one of {', '.join(CRITERIA)}.",
        )

    def stepping(self, depth: int) -> Stepping:
        """Return a mask."""
        return Masked(self.tau, self.criterion)


class Masked(Stepping):
    """Run the neurons for ``tau`` steps, and from then on let only those spike that ``criterion`` names."""

    state_names = ("mask", "count")
    mask: Tensor | None
    count: Tensor | None

    def __init__(self, tau: int, criterion: str) -> None:
        super().__init__()
        self.tau, self.criterion = tau, criterion

    @property
    def warm_up(self) -> int:
        """The steps of the pre-simulation still to come."""
        return self.tau - self.t if self.mask is None else 0

    def steps(self, neurons: Neurons, z_seq: Tensor) -> Tensor:
        """Return the spikes, masked after the pre-simulation."""
        if self.mask is not None:
            return neurons.run(z_seq) * self.mask
        if z_seq.shape[0] > self.warm_up:
            raise StateError(
                f"The pre-simulation of {self.tau} steps ends within this call; use cx.simulate or cx.evaluate, or run "
                "its steps alone and call snn.end_warm_up() before the next."
            )
        spikes = neurons.run(z_seq)
        count = spikes.sum(0)
        self.count = count if self.count is None else self.count + count
        return spikes

    def end_warm_up(self, neurons: Neurons) -> None:
        """Set the mask."""
        v = neurons.potential
        if v is None or self.count is None or self.warm_up:
            raise StateError(
                f"The pre-simulation takes {self.tau} steps, of which {self.t} have been run; run the rest."
            )
        self.mask = v > 1e-3 if self.criterion == "paper" else v + self.count >= 1

    def extra_repr(self) -> str:
        """Show the steps and the criterion."""
        return f"tau={self.tau}, criterion={self.criterion!r}"


register_tuner("residual_potential", ResidualPotential)
