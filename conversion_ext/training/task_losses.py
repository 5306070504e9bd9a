"""Losses of tasks other than choosing a class: labels that are 0 or 1, and real numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.training.losses import Loss, register_loss

__all__ = ["BinaryCrossEntropy", "OutputSquaredError"]


@dataclass(frozen=True)
class _ValueLoss(Loss):
    """Base of losses that compare the mean output value by value: outputs [T, N, ...] and targets of as many values."""

    population = None

    def prepared(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the target in the shape and type of an output."""
        shape = outputs.shape[1:]
        require(
            len(outputs) > 0 and target.shape[:1] == shape[:1] and target.numel() == shape.numel(),
            f"{self} was given outputs {list(outputs.shape)} and a target {list(target.shape)}; it takes [T, N, ...] "
            "of T >= 1 and one target for each output.",
        )
        return target.reshape(shape).to(outputs.dtype)


@dataclass(frozen=True)
class BinaryCrossEntropy(_ValueLoss):
    """Binary cross-entropy of the mean output: ``BCE(sigmoid(1/T sum_t o_t), y)`` for targets 0 and 1.

    Use it for one logit and for several labels. ``logits=False`` takes outputs that are probabilities already.
    """

    logits: bool = True

    def of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        mean = outputs.mean(0)
        if self.logits:
            return F.binary_cross_entropy_with_logits(mean, target.to(mean.dtype))
        return F.binary_cross_entropy(mean.clamp(0, 1), target.to(mean.dtype))


@dataclass(frozen=True)
class OutputSquaredError(_ValueLoss):
    """Squared error of the mean output: ``mean (1/T sum_t o_t - y)^2``; use it for regression."""

    def of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        mean = outputs.mean(0)
        return F.mse_loss(mean, target.to(mean.dtype))


register_loss("binary", BinaryCrossEntropy)
register_loss("squared_error", OutputSquaredError)
