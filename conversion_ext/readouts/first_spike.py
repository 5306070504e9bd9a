"""The output neuron that spikes first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from conversion_ext.readouts.base import Memory, Readout

__all__ = ["FirstSpike"]


@dataclass(frozen=True)
class FirstSpike(Readout):
    """Decide for the output neuron that spikes first: the output is ``1 / t`` for a first spike at step t, 0 for none.

    So the largest output is the earliest, and ``argmax`` takes the first class of those that tie. Output neurons are
    as for :class:`SpikeCount`.

    Reference: Eshraghian et al., Proc. IEEE 2023 (latency decoding).
    """

    @property
    def spiking(self) -> bool:
        """Whether it reads spikes: yes."""
        return True

    def step(self, memory: Memory, x: Tensor, t: int) -> Memory:
        """Keep 1 / t of the first spike."""
        first = (x != 0) & (memory[0] == 0)
        return (torch.where(first, 1 / t, memory[0]),)

    def decode(self, memory: Memory, t: int) -> Tensor:
        """Return 1 / t of the first spikes so far."""
        return memory[0].clone()
