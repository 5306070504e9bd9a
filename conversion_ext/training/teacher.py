"""The ANN as teacher of the network that is trained: its output, and the rates that correspond to its activations."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from conversion_ext.analysis.scores import main_output
from conversion_ext.conversion.memory_format import channels_last
from conversion_ext.conversion.observation import prepared_for
from conversion_ext.graph.values import map_tensors
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.operators.sites import Site
from conversion_ext.simulation.samples import Batch

__all__ = ["Teacher", "TeacherOutput"]


class TeacherOutput(NamedTuple):
    """The output of the teacher [N, C] and, where asked for, {site: the rate that its activation asks for [N, ...]}."""

    output: Any
    rates: dict[str, Tensor]


class Teacher:
    """A copy of ``ann`` in evaluation; with ``layers`` it is traced as ``convert`` does it, and has ``snn``'s sites."""

    def __init__(self, ann: nn.Module, snn: SpikingNetwork, device: torch.device, layers: bool) -> None:
        self.ann, self.snn, self.layers = copy.deepcopy(ann).to(device).eval(), snn, layers
        self.activations: dict[str, Tensor] = {}
        self.traced = not layers

    @torch.no_grad()
    def of(self, batch: Batch) -> TeacherOutput:
        """Return output and rates of the teacher for a batch; for a sequence of frames, the means over them."""
        inputs = batch.samples()
        if not self.traced:  # it takes an input to trace a network
            self.ann, self.traced = self._with_sites(inputs), True

        def mean(value: Tensor) -> Tensor:
            return value.unflatten(0, (-1, len(batch))).mean(0) if batch.sequence else value

        output = map_tensors(self.ann(*inputs), mean)
        sites = self.snn.sites()
        rates: dict[str, Tensor] = {}
        for key, activation in self.activations.items():
            site, wanted = sites[key], mean(activation)
            rate = wanted / site.amplitude(wanted.dim())
            rates[key] = rate.clamp(site.spec.lowest, site.levels)
        return TeacherOutput(main_output(output)[0], rates)

    def _with_sites(self, inputs: tuple[Any, ...]) -> nn.Module:
        recipe, options = self.snn.conversion.recipe, self.snn.record.options
        prepared = prepared_for(recipe, self.ann, inputs, replace(options, graded=True))
        shared = self.snn.sites().keys()
        for site in prepared.sites:
            if site.key in shared:
                prepared.model.get_submodule(site.target).register_forward_hook(self._seeing(site))
        channels_last(prepared.model)
        return prepared.model

    def _seeing(self, site: Site) -> Any:
        def see(module: nn.Module, args: Any, output: Tensor) -> None:
            self.activations[site.key] = output

        return see
