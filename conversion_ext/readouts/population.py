"""Groups of outputs that vote for a class."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.readouts.base import Memory, Readout
from conversion_ext.readouts.mean_output import MeanOutput

__all__ = ["Population"]


@dataclass(frozen=True)
class Population(Readout):
    """Average over the outputs of each class: [N, classes * k, ...] read by ``of`` becomes [N, classes, ...].

    Class c owns outputs c k ... c k + k - 1, as in ``snntorch.functional`` with ``population_code``.
    """

    classes: int
    of: Readout = field(default_factory=MeanOutput)

    def __post_init__(self) -> None:
        require(
            isinstance(self.classes, int) and self.classes >= 1 and isinstance(self.of, Readout),
            f"Population(classes={self.classes!r}, of={self.of!r}): give a number of classes >= 1 and a readout.",
        )

    @property
    def spiking(self) -> bool:
        """Whether it reads spikes: as ``of`` does."""
        return self.of.spiking

    @property
    def first_step(self) -> int:
        """As ``of``."""
        return self.of.first_step

    def begin(self, x: Tensor) -> Memory:
        """Return the memory of ``of``; check that classes share the outputs evenly."""
        require(
            x.dim() >= 2 and x.shape[1] % self.classes == 0,
            f"Population(classes={self.classes}) cannot share outputs {list(x.shape)} evenly; the size of dimension 1 "
            "must be a multiple of the number of classes.",
        )
        return self.of.begin(x)

    def step(self, memory: Memory, x: Tensor, t: int) -> Memory:
        """Let ``of`` take the step."""
        return self.of.step(memory, x, t)

    def decode(self, memory: Memory, t: int) -> Tensor:
        """Return what ``of`` decodes, averaged per class."""
        return self.of.decode(memory, t).unflatten(1, (self.classes, -1)).mean(2)
