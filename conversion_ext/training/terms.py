"""Terms added to a loss, as values: distance to a teacher, and how active neurons may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.exact import state_dtype

__all__ = ["ActivityBand", "Distillation", "OutputDistillation", "RateDistillation", "require_range"]


@dataclass(frozen=True)
class Distillation:
    """Divergence from a teacher: ``weight tau^2 mean_n KL(softmax(z / tau), softmax(o / tau))``, o the mean output.

    ``distillation(outputs, teacher)`` takes outputs [T, N, C] and the teacher's logits z [N, C]; tau is the
    ``temperature``, whose square keeps the size of gradients. Added to a loss, not in its place.

    Reference: Hinton, Vinyals, Dean, 2015.
    """

    temperature: float = 4.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(
            isinstance(self.temperature, float | int) and self.temperature > 0,
            f"Distillation(temperature={self.temperature!r}): the temperature is a positive number.",
        )
        require_range(self, "weight", 0, float("inf"))

    def __call__(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """Return the divergence, []."""
        require(
            teacher.dim() > 1 and teacher.shape[1] > 1,
            f"{self} compares the probabilities of classes, and there is one output per sample; use "
            "OutputDistillation().",
        )
        ours, theirs = (
            F.log_softmax(logits.to(state_dtype(logits.dtype)) / self.temperature, 1)
            for logits in (outputs.mean(0, dtype=state_dtype(outputs.dtype)), teacher)
        )
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return self.weight * self.temperature**2 * divergence


@dataclass(frozen=True)
class OutputDistillation:
    """Distance from a teacher's output: ``weight mean (o - z)^2`` with o the mean output; for what is no class score.

    ``distillation(outputs, teacher)`` takes outputs [T, N, ...] and the teacher's z [N, ...].
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        require_range(self, "weight", 0, float("inf"))

    def __call__(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """Return the distance, []."""
        return self.weight * F.mse_loss(outputs.mean(0, dtype=state_dtype(outputs.dtype)), teacher.to(outputs.dtype))


@dataclass(frozen=True)
class RateDistillation:
    """Distance from a teacher's activations, layer by layer: ``weight mean_sites mean_n,i (r - a / lambda)^2``.

    ``distillation(rates, wanted)`` takes {site: spikes per step [N, ...]} and {site: the rate of the teacher's
    activation, within the range of a neuron [N, ...]}; sites that the teacher does not have are left out.

    Reference: Wu et al., IEEE TNNLS 2023 (tandem learning: layer-wise outputs of the ANN as targets).
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        require_range(self, "weight", 0, float("inf"))

    def __call__(self, rates: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
        """Return the distance, []."""
        shared = [key for key in rates if key in wanted]
        require(bool(shared), f"{self}: the teacher has none of the sites {', '.join(rates)}; use the ANN converted.")
        errors = [(rates[key] - wanted[key].to(rates[key].dtype)).square() for key in shared]
        return self.weight * torch.stack([e.mean(dtype=state_dtype(e.dtype)) for e in errors]).mean()


@dataclass(frozen=True)
class ActivityBand:
    """Keep firing rates in a band: ``weight mean_sites mean_neurons (max(low - r, 0)^2 + max(r - high, 0)^2)``.

    ``band(rates)`` takes {site: spikes per step and sample [N, ...]}; r is the mean rate of a neuron over the batch, so
    that a neuron may be silent for one sample, and is drawn back only if it is silent, or never silent, for all.
    """

    low: float = 0.01
    high: float = 0.5
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(
            0 <= self.low <= self.high,
            f"ActivityBand(low={self.low!r}, high={self.high!r}): give rates with 0 <= low <= high.",
        )
        require_range(self, "weight", 0, float("inf"))

    def __call__(self, rates: Mapping[str, Tensor]) -> Tensor:
        """Return the penalty, []."""
        require(len(rates) > 0, f"{self} was given no rates; it takes those of one site or more.")
        means = [rate.mean(0, dtype=state_dtype(rate.dtype)) for rate in rates.values()]
        parts = [((self.low - r).clamp_min(0).square() + (r - self.high).clamp_min(0).square()).mean() for r in means]
        return self.weight * torch.stack(parts).mean()


def require_range(value: Any, name: str, low: float, high: float) -> None:
    """Raise ValueError unless the field ``name`` of ``value`` is a number from ``low`` to ``high``."""
    given = getattr(value, name)
    require(
        isinstance(given, float | int) and low <= given <= high,
        f"{type(value).__name__}({name}={given!r}): give a number from {low} to {high}.",
    )
