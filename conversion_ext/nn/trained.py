"""The base of activations that a network is trained with because they are what spiking neurons compute."""

from __future__ import annotations

from torch import Tensor, nn

from conversion_ext.neurons import Neuron

__all__ = ["Trained"]


class Trained(nn.Module):
    """An activation that defines its own site: its threshold, and its neuron where that is not the recipe's.

    A subclass in a network is a site of the conversion, whatever the recipe's normalizer; no operator need be
    registered for it.
    """

    @property
    def site_threshold(self) -> Tensor:
        """The threshold in ANN units, [], positive."""
        raise NotImplementedError

    @property
    def site_neuron(self) -> Neuron | None:
        """The neuron that computes this activation; None for an integrate-and-fire neuron of the recipe's choice."""
        return None
