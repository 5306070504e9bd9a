"""Backpropagation through time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.simulation.inputs import Presentation
from conversion_ext.training.gradients.base import Gradient, Objective, register_gradient
from conversion_ext.training.student import Student

__all__ = ["ThroughTime"]


@dataclass(frozen=True)
class ThroughTime(Gradient):
    """Back-propagation through all steps and the surrogate of every spike (BPTT).

    Memory grows with T; with ``recompute`` only that many steps are kept and the others run once more in the backward
    pass (gradient checkpointing through time): the same gradient for a third more time.

    Reference: Neftci, Mostafa, Zenke, 2019 (surrogate gradients); Chen et al., 2016 (checkpointing).
    """

    recompute: int | None = None

    def __post_init__(self) -> None:
        require(
            self.recompute is None or (isinstance(self.recompute, int) and self.recompute >= 1),
            f"ThroughTime(recompute={self.recompute!r}): give the steps to keep at once, >= 1, or None for all.",
        )

    def losses(
        self, network: Callable[..., Any], student: Student, batch: Presentation, objective: Objective
    ) -> Iterator[Tensor]:
        """Yield one loss, of all steps."""
        yield objective(*network(*batch.steps(0, batch.T // batch.block, batch.block), self.recompute))


register_gradient("bptt", ThroughTime())
