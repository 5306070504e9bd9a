"""The vocabulary that crosses stages: small values without behaviour of their own."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from conversion_ext.errors import require

__all__ = ["SPIKES", "Family", "Granularity", "PerChannel", "PerLayer", "Reset", "Steps", "Text", "whole"]


def whole(value: Any) -> int | None:
    """Return an integer as one, also of numpy or of a tensor of one integer; None for anything else, True too."""
    if isinstance(value, bool | str):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return None


class Text(str, Enum):
    """A choice that is its own text: enum.StrEnum, which Python 3.10 lacks."""

    __str__ = str.__str__


class Reset(Text):
    """What a spike does to the membrane potential.

    ``SUBTRACT`` (soft reset): ``v <- v - 1``; the residue above threshold is kept, so the error of a
    rate falls as 1/T. ``ZERO`` (hard reset): ``v <- 0``; the residue is lost (Rueckauer et al., 2017).
    """

    SUBTRACT = "subtract"
    ZERO = "zero"


class Family(Text):
    """The set of values a signal takes at one time step, in units of its threshold."""

    BINARY = "binary"  # {0, 1}
    WEIGHTED = "weighted"  # {0, w_k} at step k: one spike or none, whose weight falls with time
    SIGNED = "signed"  # {-1, 0, 1}
    MULTI_LEVEL = "multi-level"  # {0, 1, ..., k}; from neurons that take spikes back {-k, ..., k}
    GRADED = "graded"  # any real number, changes at every step
    ANALOG = "analog"  # any real number: sums, averages or scaled spikes, or the image itself


SPIKES = (Family.BINARY, Family.WEIGHTED, Family.SIGNED, Family.MULTI_LEVEL)
"""Families of spikes: a weight layer that sees them adds, and multiplies by nothing but powers of two."""


@dataclass(frozen=True)
class PerLayer:
    """One threshold for a whole site: activation [N, C, H, W] -> threshold []."""


@dataclass(frozen=True)
class PerChannel:
    """One threshold per index of ``dim``: activation [N, C, H, W], dim 1 -> threshold [C].

    ``dim`` counts without the time axis, so the batch is 0; activation [N, F], dim 1 -> threshold [F].
    """

    dim: int = 1

    def __post_init__(self) -> None:
        require(
            isinstance(self.dim, int) and not isinstance(self.dim, bool) and self.dim != 0,
            f"PerChannel(dim={self.dim!r}): dim must be an integer other than 0 (0 is the batch); 1 is the channel.",
        )


Granularity = PerLayer | PerChannel


class Steps(NamedTuple):
    """The time axis of one call of a network body.

    ``T`` steps are folded into the batch, [T*N, ...]; ``constant``: inputs do not depend on time
    and arrive once, [N, ...]. If ``block`` = K > 1, T counts blocks of K steps. Tensors then hold averages over a
    block, and each neuron integrates that average for K steps.
    ``live`` matters where sites look ahead: the steps are ticks of one clock, behind which a site lags; else they are
    all T steps of a run, and each site counts from its own first step.
    """

    T: int
    constant: bool = False
    block: int = 1
    live: bool = False
