"""How the neurons of a site are stepped: one small module per site, exchanged by tuners that act while simulating."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from conversion_ext.neurons import Neuron
from conversion_ext.nn.stateful import Memory

__all__ = ["Neurons", "Runner", "Stepping"]


Runner = Callable[[Tensor, Tensor], Tensor]
"""Currents [T, N, ...] and where potentials start, which broadcasts to [N, ...], to spikes [T, N, ...]."""


class Neurons(Protocol):
    """What a stepping may do with the neurons of its site, of the kind ``spec``, ``copies`` for each activation."""

    spec: Neuron
    copies: int

    @property
    def potential(self) -> Tensor | None:
        """The membrane potential [N, ...] after the last step, in units of the threshold; None before the first."""
        ...

    def start(self, z: Tensor) -> Tensor:
        """Return the potential [N, ...] from which the neurons start under currents z [N, ...]."""
        ...

    def run(self, z_seq: Tensor, v_init: Tensor | None = None, by: Runner | None = None) -> Tensor:
        """Return spikes [T, N, ...] for currents z_seq; without state, neurons start from ``v_init`` or the site's.

        ``by`` runs them in the place of the framework.
        """
        ...

    def restart(self) -> None:
        """Forget the state."""
        ...


class Stepping(Memory):
    """Turn the currents of a site into what its neurons emit, [T, N, ...] to [T, N, ...]; here by running them.

    A subclass defines ``steps`` and the properties that ``schedule`` reads: ``warm_up``, remaining warm-up steps of the
    whole network; ``lag_steps``, steps by which the output of a site lags behind its input (adds up over depth);
    ``min_first_call``, minimum number of steps in the first call. To record spikes, register a forward hook on this
    module: it returns the spikes [T, N, ...].
    """

    lag_steps: int = 0

    @property
    def plain(self) -> bool:
        """Whether it runs the neurons as they are, step by step, and does nothing else."""
        return type(self).steps is Stepping.steps

    @property
    def warm_up(self) -> int:
        """The steps of the warm-up still to come."""
        return 0

    @property
    def min_first_call(self) -> int:
        """The steps that the next call must hold."""
        return 1

    def forward(self, neurons: Neurons, z_seq: Tensor) -> Tensor:
        """Return what ``neurons`` emit for currents z_seq [T, N, ...]."""
        spikes = self.steps(neurons, z_seq)
        self.t += z_seq.shape[0]
        return spikes

    def steps(self, neurons: Neurons, z_seq: Tensor) -> Tensor:
        """Return the spikes for z_seq [T, N, ...], ``self.t`` steps after the reset."""
        return neurons.run(z_seq)

    def end_warm_up(self, neurons: Neurons) -> None:
        """Take from the warm-up what the steps that count need; the neurons start anew after this."""
