"""The output neuron that spikes first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from conversion_ext.readouts.base import Memory, Readout

__all__ = ["FirstSpike"]
TIES = 1.5  # output neurons that spike at once, on average, without a warning


@dataclass(frozen=True)
class FirstSpike(Readout):
    """Decide for the output neuron that spikes first: the output is ``1 / t`` for a first spike at step t, 0 for none.

    So the largest output is the earliest, and ``argmax`` takes the first class of those that tie. Output neurons are
    as for :class:`SpikeCount`. Use it where outputs of a sample differ much; ``convert`` warns where several neurons
    spike at the first step on the calibration data.

    Reference: Eshraghian et al., Proc. IEEE 2023 (latency decoding).
    """

    @property
    def spiking(self) -> bool:
        """Whether it reads spikes: yes."""
        return True

    def doubt(self, first: float) -> str:
        """Return a warning where first spikes tie."""
        if first <= TIES:
            return ""
        return (
            f"On the calibration data {first:.1f} output neurons of a sample spike at the first step, and FirstSpike() "
            "cannot tell them apart. Read SpikeCount(), end the network at its logits, or start neurons at v_init=0."
        )

    def step(self, memory: Memory, x: Tensor, t: int) -> Memory:
        """Keep 1 / t of the first spike."""
        first = (x != 0) & (memory[0] == 0)
        return (torch.where(first, 1 / t, memory[0]),)

    def decode(self, memory: Memory, t: int) -> Tensor:
        """Return 1 / t of the first spikes so far."""
        return memory[0].clone()
