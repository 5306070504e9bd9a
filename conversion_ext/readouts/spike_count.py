"""The number of spikes of output neurons."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from conversion_ext.exact import accumulate
from conversion_ext.readouts.base import Memory, Windowed

__all__ = ["SpikeCount"]


@dataclass(frozen=True)
class SpikeCount(Windowed):
    """Count the spikes of the output neurons after step ``start``; the class is that of the most spikes.

    ``convert`` puts neurons of the recipe's kind behind the last layer, with one threshold for all classes, so counts
    compare; a class whose output is negative never spikes. Of equal counts ``argmax`` takes the first.

    Reference: Cao, Chen, Khosla, IJCV 2015; Diehl et al., IJCNN 2015.
    """

    @property
    def spiking(self) -> bool:
        """Whether it reads spikes: yes."""
        return True

    def step(self, memory: Memory, x: Tensor, t: int) -> Memory:
        """Count."""
        return (accumulate(memory[0], x.sign()),) if t > self.start else memory

    def decode(self, memory: Memory, t: int) -> Tensor:
        """Return the counts so far."""
        return memory[0].clone()
