"""Gradients of firing rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.network.stepping import Neurons, Stepping
from conversion_ext.neurons import Neuron
from conversion_ext.simulation.inputs import Presentation
from conversion_ext.training.gradients.base import Gradient, Objective, register_gradient
from conversion_ext.training.student import Student
from conversion_ext.types import Steps

__all__ = ["DSR", "Rate", "WholeTrains"]


@dataclass(frozen=True)
class WholeTrains(Gradient):
    """Base of rules that differentiate the spikes of all steps at once, by a stepping of their own."""

    def __post_init__(self) -> None:
        require(
            self.surrogate is None,
            f"{type(self).__name__}(surrogate={self.surrogate!r}) differentiates spikes in its own way; leave out "
            "surrogate=.",
        )

    def stepping(self, spec: Neuron) -> Stepping:
        """Return what steps the neurons of a site while it is trained; raise where they have no such gradient."""
        raise TypeError(f"{type(self).__name__} must define stepping().")

    def prepare(self, snn: SpikingNetwork) -> None:
        """Let every site be stepped so."""
        for site in snn.sites().values():
            require(
                not any(p.requires_grad for p in (site.v_init, *site.neuron.parameters())),
                f"{self} has no gradient for initial potentials and what neurons learn; leave them out of learn=.",
            )
            self.check(site)
            site.stepping = self.stepping(site.spec)

    def check(self, site: SpikingSite) -> None:
        """Raise for a site whose neurons have no such gradient."""

    def losses(
        self, network: Callable[..., Any], student: Student, batch: Presentation, objective: Objective
    ) -> Iterator[Tensor]:
        """Yield one loss, of all steps."""
        require(batch.block == 1, f"{self} needs single steps, and this recipe has block={batch.block}; use block=1.")
        yield objective(*network(*batch.steps(0, batch.T, 1)))


@dataclass(frozen=True)
class DSR(WholeTrains):
    """Spike trains as they are, each with the gradient of its rate: ``dr/dz[t] = 1/T [0 <= mean z <= 1]``.

    Use it where spikes are weighted in time: of those the mean by their weights takes the place of the rate.

    As :class:`Rate` it knows no time, but its forward is the spiking one, unevenness included, at the price of T
    passes. The gradient is that of SpikingJelly's ``DSRIFNode``, an IF neuron whose initial potential, ``1 - alpha``,
    is one for the layer; here each neuron keeps its own, in every backend.

    Reference: Meng et al., CVPR 2022 (differentiation on spike representation).
    """

    def stepping(self, spec: Neuron) -> Stepping:
        """Return spikes with straight-through gradients."""
        return StraightThrough()


@dataclass(frozen=True)
class Rate(WholeTrains):
    """Without time: the network's ``cx.twin`` is trained, each neuron's rate with the gradient of ``clamp(z, 0, 1)``.

    Use it for networks that look ahead, where T = 2 leaves no unevenness and training at one pass is all there is to
    learn. One pass costs as much as one of the ANN, whatever T. What the twin does not know, the unevenness of spike
    trains, is not trained away; weights are those of the spiking network.

    Reference: Bu et al., ICLR 2022 (quantized activations, straight-through).
    """

    def stepping(self, spec: Neuron) -> Stepping:
        """Return spikes with straight-through gradients."""
        return StraightThrough()

    def presented(self, batch: Presentation) -> tuple[Any, Steps]:
        """Return the input of a batch, and all its steps as one."""
        return batch.steps(0, 1, batch.T)

    def losses(
        self, network: Callable[..., Any], student: Student, batch: Presentation, objective: Objective
    ) -> Iterator[Tensor]:
        """Yield one loss, of the output for mean rates."""
        yield objective(*network(*self.presented(batch)))


class StraightThrough(Stepping):
    """Spikes with the gradient of their mean current, where that is within the range of a neuron.

    The mean of the spikes, by their weights, has the gradient ``m dr/dz [lowest <= r <= levels]``, with r the mean
    current and m the copies of a neuron.
    """

    def steps(self, neurons: Neurons, z_seq: Tensor) -> Tensor:
        """Return the spikes for z_seq [T, N, ...]."""
        with torch.no_grad():
            spikes = neurons.run(z_seq)
        spec = neurons.spec
        through = neurons.copies * z_seq.mean(0, keepdim=True).clamp(spec.lowest, spec.levels)
        if spec.weights is not None:  # which a spike is multiplied by later, and their mean are the levels
            through = through / spec.levels
        return spikes + (through - through.detach())


register_gradient("rate", Rate())
register_gradient("dsr", DSR())
