"""Backpropagation through time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.network.differentiation import SurrogateStepping
from conversion_ext.network.spiking_network import SpikingNetwork
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
        yield objective(*network(*self.presented(batch), self.recompute))


@dataclass(frozen=True)
class Fused(ThroughTime):
    """Back-propagation through all steps and resets, a neuron's steps being one function: less time and memory.

    Use it to train IF neurons without labels or for long: a step takes a fraction of the time of a framework's neurons,
    and learns more, since a triangle of width 1 as surrogate lets the gradients of all later spikes add up to that of
    their count. Neurons are stepped in plain torch, the same in every backend; other kinds than IF with soft reset have
    the arctangent as surrogate.

    Reference: Bellec et al., NeurIPS 2018 (triangle); Zenke, Vogels, 2021 (resets that are differentiated).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.surrogate is None,
            f"Fused(surrogate={self.surrogate!r}) differentiates spikes in its own way; leave out surrogate=.",
        )

    def prepare(self, snn: SpikingNetwork) -> None:
        """Let every site be stepped so."""
        for site in snn.sites().values():
            site.stepping = SurrogateStepping("triangle", reset=True)


register_gradient("bptt", ThroughTime())
register_gradient("fused", Fused())
