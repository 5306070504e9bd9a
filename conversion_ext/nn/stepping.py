"""How the neurons of a site are stepped: one small module per site, exchanged by methods that act while simulating."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from conversion_ext.nn.stateful import Memory

__all__ = ["Neurons", "Stepping"]


class Neurons(Protocol):
    """What a stepping may do with the neurons of its site."""

    @property
    def potential(self) -> Tensor | None:
        """The membrane potential [N, ...] after the last step, in units of the threshold; None before the first."""
        ...

    def run(self, z_seq: Tensor, v_init: Tensor | None = None) -> Tensor:
        """Return spikes [T, N, ...] for currents z_seq; without state, neurons start from ``v_init`` or the site's."""
        ...

    def restart(self) -> None:
        """Forget the state."""
        ...


class Stepping(Memory):
    """Turn the currents of a site into what its neurons emit, [T, N, ...] to [T, N, ...]; here by running them.

    Whoever wants to see the spikes of a site hooks this module, whose output they are, step by step.
    """

    def forward(self, neurons: Neurons, z_seq: Tensor) -> Tensor:
        """Return what ``neurons`` emit for currents z_seq [T, N, ...]."""
        spikes = self.steps(neurons, z_seq)
        self.t += z_seq.shape[0]
        return spikes

    def steps(self, neurons: Neurons, z_seq: Tensor) -> Tensor:
        """Return the spikes for z_seq [T, N, ...], ``self.t`` steps after the reset."""
        return neurons.run(z_seq)
