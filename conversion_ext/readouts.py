"""How the readout currents of the steps become an output in units of the ANN."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from conversion_ext.errors import require

__all__ = ["MeanOutput", "Readout"]


@dataclass(frozen=True)
class Readout:
    """Base of all readouts: ``begin`` makes a running sum, ``add`` takes a step, ``decode`` gives the output."""

    def decode(self, total: Tensor, t: int) -> Tensor:
        """Return the output after step ``t`` from the sum of the currents that count."""
        raise TypeError(f"{type(self).__name__} must define decode().")

    def counts(self, t: int) -> bool:
        """Return whether step ``t`` (1, 2, ...) enters the sum."""
        return True


@dataclass(frozen=True)
class MeanOutput(Readout):
    """Average the readout current over steps start+1 ... t: ``y(t) = sum / (t - start)``.

    Without a neuron behind the last layer this is the ANN's output with activations replaced by rates, in ANN
    units. Before ``start`` the output is 0. ``start > 0`` discards the transient of a deep network.
    """

    start: int = 0

    def __post_init__(self) -> None:
        require(
            isinstance(self.start, int) and self.start >= 0,
            f"MeanOutput(start={self.start!r}): start is the number of first steps to discard, an integer >= 0.",
        )

    def counts(self, t: int) -> bool:
        """Return whether step ``t`` enters the mean."""
        return t > self.start

    def decode(self, total: Tensor, t: int) -> Tensor:
        """Return the mean over the steps that counted."""
        return total / max(t - self.start, 1) if t > self.start else torch.zeros_like(total)
