"""What the ANN says to the network that is trained: its output, and the rates that its activations ask for."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from conversion_ext.conversion.observation import traced_for
from conversion_ext.network.spiking_network import Root
from conversion_ext.operators.sites import Site

__all__ = ["Said", "Teacher"]


class Said(NamedTuple):
    """The output of the teacher [N, C] and, where asked for, {site: the rate that its activation asks for [N, ...]}."""

    output: Any
    rates: dict[str, Tensor]


class Teacher:
    """A copy of ``ann`` in evaluation; with ``layers`` it is traced as ``convert`` does it, and has ``snn``'s sites."""

    def __init__(self, ann: nn.Module, snn: Root, device: torch.device, layers: bool) -> None:
        self.ann, self.snn, self.layers = copy.deepcopy(ann).to(device).eval(), snn, layers
        self.activations: dict[str, Tensor] = {}
        self.traced = not layers

    @torch.no_grad()
    def of(self, inputs: tuple[Any, ...]) -> Said:
        """Return what the teacher says to a batch."""
        if not self.traced:  # it takes an input to trace a network
            self.ann, self.traced = self._with_sites(inputs), True
        output = self.ann(*inputs)
        sites = self.snn.sites()
        rates: dict[str, Tensor] = {}
        for key, activation in self.activations.items():
            site = sites[key]
            rate = activation / site.amplitude(activation.dim())
            rates[key] = rate.clamp(site.spec.lowest, site.spec.levels)
        return Said(output, rates)

    def _with_sites(self, inputs: tuple[Any, ...]) -> nn.Module:
        recipe = self.snn.conversion.recipe
        traced = traced_for(recipe, self.ann, inputs)
        shared = self.snn.sites().keys()
        for site in traced.sites:
            if site.key in shared:
                traced.model.get_submodule(site.target).register_forward_hook(self._seeing(site))
        return traced.model

    def _seeing(self, site: Site) -> Any:
        def see(module: nn.Module, args: Any, output: Tensor) -> None:
            self.activations[site.key] = output

        return see
