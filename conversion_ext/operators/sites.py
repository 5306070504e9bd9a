"""Sites: the places of a network where an activation is applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from conversion_ext.types import Text

if TYPE_CHECKING:
    from conversion_ext.neurons import Neuron

__all__ = ["Site", "SiteKind"]


class SiteKind(Text):
    """How a site is made to spike."""

    RELU = "relu"  # an integrate-and-fire neuron; exact clipping at `cap`
    SIGNED = "signed"  # a differential operator followed by a signed spiking encoder
    GRADED = "graded"  # a differential operator, its output not spiking
    RELAY = "relay"  # a neuron added where a synapse would see analog values


@dataclass(frozen=True)
class Site:
    """A place where an activation is applied.

    ``key``: module path in the user's model, ``layer1.0.relu#1`` for the second call site;
    ``target``: where its module lives in the captured graph; ``cap``: upper end of a clipped ReLU, or None;
    ``threshold`` and ``neuron``: those that the activation was trained for, None for the recipe's.
    """

    key: str
    target: str
    kind: SiteKind = SiteKind.RELU
    cap: float | None = None
    threshold: float | None = None
    neuron: Neuron | None = None
