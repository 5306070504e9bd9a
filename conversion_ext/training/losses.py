"""What training minimizes: losses of the outputs over time, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from conversion_ext.analysis.metrics import class_numbers
from conversion_ext.errors import require
from conversion_ext.exact import state_dtype
from conversion_ext.registry import Registry, class_of
from conversion_ext.training.terms import require_range

__all__ = [
    "TET",
    "CountCrossEntropy",
    "Loss",
    "MeanSquareCount",
    "MeanSquareMembrane",
    "MembraneCrossEntropy",
    "Population",
    "RateCrossEntropy",
    "SpikeTime",
    "SpikeTimeCrossEntropy",
    "loss_of",
    "losses",
    "register_loss",
]


@dataclass(frozen=True)
class Loss:
    """Base of all losses: ``loss(outputs, target)`` is a scalar for outputs [T, N, C] and classes target [N].

    Targets may also be [N, 1], whole floats or one-hot [N, C]; ``spatial`` losses take outputs [T, N, C, ...] and
    classes [N, ...] too, of which negative ones and 255 do not count.

    Outputs are the readout currents of the steps in ANN units or, where the loss is ``spiking``, the spikes {0, 1} of
    the output neurons that a recipe with a spiking readout has. They are taken in float32 or wider. A subclass
    defines ``of``; ``population``: how :class:`Population` joins the outputs of a class for it.

    Raises ValueError for outputs or targets of another shape.
    """

    spiking: ClassVar[bool] = False
    population: ClassVar[str | None] = "mean"
    spatial: ClassVar[bool] = False

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss, []."""
        return self.of(outputs.to(state_dtype(outputs.dtype)), self.prepared(outputs, target))

    def prepared(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the target as ``of`` takes it: class numbers, -100 for what does not count."""
        shape = outputs.shape[1:]
        fits = (outputs.dim() == 3 or (self.spatial and outputs.dim() > 3)) and len(outputs) > 0
        numbers = (
            fits and target.shape[:1] == shape[:1] and target.numel() in (shape.numel() // shape[1], shape.numel())
        )
        require(
            numbers,
            f"{self} was given outputs {list(outputs.shape)} and a target {list(target.shape)}; it takes [T, N, C] of "
            "T >= 1 and [N].",
        )
        if outputs.shape[2] == 1:
            return target.reshape(len(target)).long()
        classes, counted = class_numbers(outputs[0], target, repr(self))
        return torch.where(counted, classes, -100)

    def of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss, [], of outputs [T, N, C] for classes [N]."""
        raise TypeError(f"{type(self).__name__} must define of().")


losses: Registry[type[Loss]] = Registry("loss", class_of(Loss), "a class derived from Loss")


def register_loss(name: str, loss: type[Loss]) -> type[Loss]:
    """Add a loss class under ``name``; it must work without arguments."""
    return losses.register(name, loss)


def loss_of(loss: str | Loss) -> Loss:
    """Return the loss registered under a name, with its defaults, or the loss given."""
    return losses.get(loss)() if isinstance(loss, str) else loss


@dataclass(frozen=True)
class RateCrossEntropy(Loss):
    """Cross-entropy of the mean output: ``CE(1/T sum_t o_t, y)``, of what ``MeanOutput`` reads.

    snnTorch's ``ce_rate_loss`` is another one: that is ``TET(weight=0)``.
    """

    spatial = True

    def of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return F.cross_entropy(outputs.mean(0), target)


@dataclass(frozen=True)
class TET(Loss):
    """Cross-entropy at every step: ``(1 - weight) 1/T sum_t CE(o_t, y) + weight mean_t,n,c (o - level)^2``.

    Every prefix of the run learns to be right, so accuracy at fewer steps gains. The second term keeps outputs from
    growing. With ``weight=0`` bit-equal to snnTorch's ``ce_rate_loss()``, whose ``population_code`` pools nothing.

    Reference: Deng et al., ICLR 2022 (temporal efficient training; level 1, weight 0.05 or, on CIFAR, 0.001).
    """

    weight: float = 0.05
    level: float = 1.0

    def __post_init__(self) -> None:
        require_range(self, "weight", 0, 1)

    def of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        loss = _mean([F.cross_entropy(o, target) for o in outputs])
        return loss if self.weight == 0 else torch.lerp(loss, (outputs - self.level).square().mean(), self.weight)


@dataclass(frozen=True)
class CountCrossEntropy(Loss):
    """Cross-entropy of spike counts: ``CE(sum_t s_t, y)``; bit-equal to snnTorch's ``ce_count_loss``.

    Reference: Eshraghian et al., Proc. IEEE 2023.
    """

    spiking = True
    population = "sum"

    def of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return F.cross_entropy(outputs.sum(0), target)


@dataclass(frozen=True)
class MeanSquareCount(Loss):
    """Squared error of spike counts: ``1/T mean_n,c (sum_t s_t - T r)^2``, r the target rate of the class or others.

    Equal to snnTorch's ``mse_count_loss`` where T r is whole: that truncates it, 0.29 of 100 steps to 28. For
    populations r stays the rate of an output, and the loss that of the mean output of a class, snnTorch's by k^2.

    Reference: Eshraghian et al., Proc. IEEE 2023, after SLAYER (Shrestha, Orchard, NeurIPS 2018).
    """

    correct_rate: float = 1.0
    incorrect_rate: float = 0.0
    spiking = True

    def __post_init__(self) -> None:
        require_range(self, "correct_rate", 0, 1)
        require_range(self, "incorrect_rate", 0, 1)

    def of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        T = len(outputs)
        return F.mse_loss(outputs.sum(0), T * _wanted(outputs, target, self.correct_rate, self.incorrect_rate)) / T


@dataclass(frozen=True)
class MembraneCrossEntropy(Loss):
    """Cross-entropy of the highest potential: ``CE(max_t v_t, y)`` with ``v_t = beta v_(t-1) + o_t``.

    v is the potential of output neurons that never fire, as ``readouts.MembranePotential`` reads them; of these
    potentials the loss is snnTorch's ``ce_max_membrane_loss``, bit for bit.

    Reference: Eshraghian et al., Proc. IEEE 2023, after Zenke's SpyTorch.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        require_range(self, "beta", 0, 1)

    def of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return F.cross_entropy(torch.stack(_potentials(outputs, self.beta)).max(0).values, target)


@dataclass(frozen=True)
class MeanSquareMembrane(Loss):
    """Squared error of the potential at every step: ``mean_t,n,c (v_t - w)^2``, w the target of the class or others.

    v as in :class:`MembraneCrossEntropy`; of these potentials the loss is snnTorch's ``mse_membrane_loss``, which
    makes 0 of a negative ``off_target``.

    Reference: Eshraghian et al., Proc. IEEE 2023.
    """

    beta: float = 1.0
    correct: float = 1.0
    incorrect: float = 0.0

    def __post_init__(self) -> None:
        require_range(self, "beta", 0, 1)

    def of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        wanted = _wanted(outputs, target, self.correct, self.incorrect)
        return _mean([F.mse_loss(v, wanted) for v in _potentials(outputs, self.beta)])


@dataclass(frozen=True)
class SpikeTime(Loss):
    """Squared error of first spike times: ``mean_n,c ((t - w) / T)^2``, w the target step of the class or others.

    Steps count from 0, negative ones from the end. An output that never spikes is taken to spike at the last step, so
    it can learn to; ``dt/ds = -1`` at the step of the spike and 0 elsewhere. Errors below ``tolerance`` steps count
    nothing. Bit-equal to snnTorch's ``mse_temporal_loss`` where w is not negative; of a negative ``off_target``, its
    default, that makes 0 and wants all classes at the first step. (Its ``multi_spike`` is left out: it deletes spikes
    of other outputs.)

    Reference: Eshraghian et al., Proc. IEEE 2023.
    """

    correct: int = 0
    incorrect: int = -1
    tolerance: int = 0
    spiking = True
    population = None

    def of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        T = len(outputs)
        steps = (self.correct, self.incorrect)
        require(
            all(-T <= step < T for step in steps), f"{self}: there are steps -{T} ... {T - 1} in a run of {T} steps."
        )
        time = _FirstSpike.apply(outputs)
        wanted = _wanted(outputs, target, *(step % T for step in steps))
        close = (time - wanted).abs() < self.tolerance
        return F.mse_loss(torch.where(close, wanted, time) / T, wanted / T)


@dataclass(frozen=True)
class SpikeTimeCrossEntropy(Loss):
    """Cross-entropy of the order of first spikes: ``CE(-t, y)`` with t as in ``SpikeTime``.

    Bit-equal to snnTorch's ``ce_temporal_loss``.

    Reference: Eshraghian et al., Proc. IEEE 2023.
    """

    spiking = True
    population = None

    def of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return F.cross_entropy(-_FirstSpike.apply(outputs), target)


@dataclass(frozen=True)
class Population(Loss):
    """A loss for several outputs per class: [T, N, classes * k] becomes [T, N, classes] for ``loss``.

    Class c owns outputs c k ... c k + k - 1. Currents are averaged, as ``readouts.Population`` does, and so is
    the number of spikes for :class:`MeanSquareCount`; :class:`CountCrossEntropy` adds spikes up, as snnTorch does.
    """

    classes: int
    loss: Loss = field(default_factory=RateCrossEntropy)

    def __post_init__(self) -> None:
        require(
            isinstance(self.classes, int) and self.classes >= 1 and isinstance(self.loss, Loss),
            f"Population(classes={self.classes!r}, loss={self.loss!r}): give a number of classes >= 1 and a loss.",
        )
        require(
            self.loss.population is not None,
            f"Population(loss={self.loss!r}): spike times of several outputs have no common one; use a loss of rates, "
            "counts or potentials.",
        )

    @property
    def spiking(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether it takes spikes: as ``loss`` does."""
        return self.loss.spiking

    def of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        require(
            outputs.shape[2] % self.classes == 0,
            f"{self} cannot share {outputs.shape[2]} outputs evenly; their number must be a multiple of the classes.",
        )
        grouped = outputs.unflatten(2, (self.classes, -1))
        return self.loss(grouped.sum(3) if self.loss.population == "sum" else grouped.mean(3), target)


class _FirstSpike(torch.autograd.Function):
    """Step of the first spike of [T, N, C], the last step where there is none; its derivative there is -1."""

    @staticmethod
    def forward(ctx: Any, spikes: Tensor) -> Tensor:
        fired = spikes != 0
        step = torch.where(fired.any(0), fired.int().argmax(0), len(spikes) - 1)
        ctx.save_for_backward(step)
        ctx.T = len(spikes)
        return step.to(spikes.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (step,) = ctx.saved_tensors
        grad = grad_outputs[0].new_zeros(ctx.T, *step.shape)
        return grad.scatter_(0, step.unsqueeze(0), -grad_outputs[0].unsqueeze(0))


def _potentials(outputs: Tensor, beta: float) -> list[Tensor]:
    """Return the potentials [N, C] after each step of neurons that never fire."""
    v = [outputs[0]]
    for o in outputs[1:]:
        v.append(beta * v[-1] + o)
    return v


def _mean(steps: list[Tensor]) -> Tensor:
    """Return the mean, added up step by step as snnTorch does."""
    return reduce(torch.add, steps) / len(steps)


def _wanted(outputs: Tensor, target: Tensor, correct: float, incorrect: float) -> Tensor:
    """Return the target of each output, [N, C]: ``correct`` of that of the class, ``incorrect`` of others."""
    own = F.one_hot(target, outputs.shape[2]).bool()
    return torch.where(own, outputs.new_tensor(correct), outputs.new_tensor(incorrect))  # numbers alone are float32


for _name, _loss in {
    "rate": RateCrossEntropy, "tet": TET, "count": CountCrossEntropy, "mse_count": MeanSquareCount,
    "membrane": MembraneCrossEntropy, "mse_membrane": MeanSquareMembrane, "spike_time": SpikeTime,
    "ce_spike_time": SpikeTimeCrossEntropy,
}.items():  # fmt: skip
    register_loss(_name, _loss)
