"""How the gradient of a loss gets through time: rules as values, one loss or one for each part of the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conversion_ext.encoders.base import encoded
from conversion_ext.errors import require
from conversion_ext.neurons import Neuron
from conversion_ext.nn.root import Memories, Root, fold_time
from conversion_ext.nn.stepping import Neurons, Stepping
from conversion_ext.registry import Registry
from conversion_ext.simulate import means
from conversion_ext.training.student import Student
from conversion_ext.types import Steps

__all__ = [
    "DSR",
    "Gradient",
    "Objective",
    "Online",
    "Presentation",
    "Rate",
    "ThroughTime",
    "WholeTrains",
    "gradient_of",
    "gradients",
    "register_gradient",
]

Objective = Callable[[Tensor, dict[str, Tensor]], Tensor]
"""``(outputs [T, N, C], {site: rates [N, ...]}) -> loss []``"""


class Presentation:
    """A batch as the network sees it: T steps, in blocks of K, through the recipe's encoder."""

    def __init__(self, snn: Root, inputs: tuple[Any, ...], T: int, block: int, generator: torch.Generator) -> None:
        encoder = snn.conversion.recipe.encoder
        self.inputs, self.T, self.block = inputs, T, block
        self.read = None if encoder.constant else encoded(encoder, inputs, T, generator)

    def steps(self, first: int, count: int, block: int) -> tuple[tuple[Any, ...], Steps]:
        """Return ``count`` steps (or blocks), to be called in order: inputs as ``Root.run`` takes them, and steps."""
        if self.read is None:
            return self.inputs, Steps(count, constant=True, block=block)
        frames = means(self.read, block)(first, count)
        return tuple(fold_time(v) for v in frames), Steps(count, block=block)


@dataclass(frozen=True)
class Gradient:
    """Base of all rules. ``losses`` runs a batch and yields losses, each to be back-propagated before the next.

    ``network`` is the student as it is to be called: ``network(inputs, steps)`` returns (outputs [T, N, C], {site:
    rates [N, ...]}); its state is reset.
    """

    def prepare(self, snn: Root) -> None:
        """Change the copy that is trained, once."""

    def losses(
        self, network: Callable[..., Any], student: Student, batch: Presentation, objective: Objective
    ) -> Iterator[Tensor]:
        """Yield the losses of a batch."""
        raise TypeError(f"{type(self).__name__} must define losses().")


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


@dataclass(frozen=True)
class Online(Gradient):
    """The gradient of the last ``steps`` steps alone: the state is a constant when they begin.

    Memory does not depend on T. The loss at each part is that of the outputs and rates so far, earlier ones constant,
    so the last is the loss of all; parts weigh as many steps as they have. With ``steps=1`` the gradient is that of
    SpikingJelly's ``SLTTLIFNode``, an IF neuron for ``tau = inf``. snnTorch's ``backprop.RTRL`` is no neuron but a loop
    around such a gradient, with an update at every step; its ``RLeaky`` feeds spikes back, which no ReLU does.

    Reference: Meng et al., ICCV 2023 (SLTT, ``steps=1``); Williams, Peng, 1990 (truncation).
    """

    steps: int = 1

    def __post_init__(self) -> None:
        require(
            isinstance(self.steps, int) and not isinstance(self.steps, bool) and self.steps >= 1,
            f"Online(steps={self.steps!r}): give the steps through which a gradient goes, >= 1.",
        )

    def losses(
        self, network: Callable[..., Any], student: Student, batch: Presentation, objective: Objective
    ) -> Iterator[Tensor]:
        """Yield a loss for every part of the steps."""
        total, past, sent = batch.T // batch.block, list[Tensor](), dict[str, Tensor]()
        memories = Memories(student.snn)
        for first in range(0, total, self.steps):
            count = min(self.steps, total - first)
            memories.map(torch.detach)
            outputs, rates = network(*batch.steps(first, count, batch.block))
            sums = {key: count * rate + sent.get(key, 0.0) for key, rate in rates.items()}
            so_far = {key: value / (first + count) for key, value in sums.items()}
            yield objective(torch.cat([*past, outputs]), so_far) * (count / total)
            past.append(outputs.detach())
            sent = {key: value.detach() for key, value in sums.items()}


@dataclass(frozen=True)
class WholeTrains(Gradient):
    """Base of rules that differentiate the spikes of all steps at once, by a stepping of their own."""

    def stepping(self, spec: Neuron) -> Stepping:
        """Return what steps the neurons of a site while it is trained; raise where they have no such gradient."""
        raise TypeError(f"{type(self).__name__} must define stepping().")

    def prepare(self, snn: Root) -> None:
        """Let every site be stepped so."""
        for site in snn.sites().values():
            require(
                not any(p.requires_grad for p in (site.v_init, *site.neuron.parameters())),
                f"{self} has no gradient for initial potentials and what neurons learn; leave them out of learn=.",
            )
            site.stepping = self.stepping(site.spec)

    def losses(
        self, network: Callable[..., Any], student: Student, batch: Presentation, objective: Objective
    ) -> Iterator[Tensor]:
        """Yield one loss, of all steps."""
        require(batch.block == 1, f"{self} needs single steps, and this recipe has block={batch.block}; use block=1.")
        yield objective(*network(*batch.steps(0, batch.T, 1)))


@dataclass(frozen=True)
class DSR(WholeTrains):
    """Spike trains as they are, each with the gradient of its rate: ``dr/dz[t] = 1/T [0 <= mean z <= 1]``.

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

    One pass costs as much as one of the ANN, whatever T. What the twin does not know, the unevenness of spike trains,
    is not trained away; weights are those of the spiking network.

    Reference: Bu et al., ICLR 2022 (quantized activations, straight-through).
    """

    def stepping(self, spec: Neuron) -> Stepping:
        """Return spikes with straight-through gradients."""
        return StraightThrough()

    def losses(
        self, network: Callable[..., Any], student: Student, batch: Presentation, objective: Objective
    ) -> Iterator[Tensor]:
        """Yield one loss, of the output for mean rates."""
        yield objective(*network(*batch.steps(0, 1, batch.T)))


class StraightThrough(Stepping):
    """Spikes with the gradient of their mean current, where that is within what a neuron can say."""

    def steps(self, neurons: Neurons, z_seq: Tensor) -> Tensor:
        """Return the spikes for z_seq [T, N, ...]."""
        with torch.no_grad():
            spikes = neurons.run(z_seq)
        through = z_seq.mean(0, keepdim=True).clamp(neurons.spec.lowest, neurons.spec.levels)
        return spikes + (through - through.detach())


gradients: Registry[Gradient] = Registry("gradient")


def register_gradient(name: str, gradient: Gradient) -> Gradient:
    """Add a rule under ``name``, after which ``finetune(..., gradient=name)`` finds it."""
    return gradients.register(name, gradient)


def gradient_of(gradient: str | Gradient) -> Gradient:
    """Return the rule registered under a name, or the rule given."""
    if isinstance(gradient, str):
        return gradients.get(gradient)
    require(
        isinstance(gradient, Gradient),
        f"gradient={gradient!r}: give a name, {', '.join(gradients.names())}, or a value such as ThroughTime().",
        TypeError,
    )
    return gradient


register_gradient("bptt", ThroughTime())
register_gradient("rate", Rate())
register_gradient("online", Online())
register_gradient("dsr", DSR())
