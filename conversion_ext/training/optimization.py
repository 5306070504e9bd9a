"""How a training runs: optimizer, rate, seed, where it is kept, and on what it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conversion_ext.errors import require

__all__ = ["RATES", "Training"]

RATES = {"adamw": 1e-3, "sgd": 0.01, "relative": 0.005}
NORMALIZED = 3.0  # times as large a rate does best where BatchNorm stands behind the layers
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Training:
    """How ``finetune`` updates parameters and keeps a run; what it minimizes are arguments of ``finetune`` itself.

    Args:
        optimizer: "adamw", "sgd" (momentum 0.9), "relative" (Adam, its rate relative to the root mean square of each
            parameter: layers of any size move alike), or a function of parameters that returns a torch optimizer.
        rate: the largest learning rate; it rises along a line for 5 % of the steps and falls along a cosine. By default
            0.001, 0.01 and 0.005, 3 times as large beside BatchNorm, or of these rates times 1, 1/4, 1/16, 1/64 the
            first with which a few steps do not raise the loss on held-out data.
        weight_decay: of weights alone; biases, thresholds and potentials do not belong at 0.
        seed: of the order of samples, of random encoders and of what is held out.
        checkpoint: a file. Training goes on from it, if it exists, and ends as if never interrupted.
        checkpoint_every: steps of the optimizer between two checkpoints; one more follows each epoch.
        accelerator: an ``accelerate.Accelerator`` for devices, several processes (each with its own part of the data)
            and mixed precision: weights and membranes stay float32, spikes have the type of the currents.
        precision: "float32", or "bfloat16" for the passes of the training (weights stay float32, and what judges is
            simulated in float32): less than half of the time where the processor multiplies in it. An accelerator has
            a precision of its own.

    >>> Training(rate=3e-3).optimizer
    'adamw'
    """

    optimizer: str | Callable[[Any], torch.optim.Optimizer] = "adamw"
    rate: float | None = None
    weight_decay: float = 0.0
    seed: int = 0
    checkpoint: str | Path | None = None
    checkpoint_every: int = 500
    accelerator: Any = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        every = self.checkpoint_every
        require(
            isinstance(every, int) and not isinstance(every, bool) and every >= 1,
            f"Training(checkpoint_every={every!r}): give an integer >= 1.",
        )
        require(
            self.precision in PRECISIONS and (self.precision == "float32" or self.accelerator is None),
            f"Training(precision={self.precision!r}): choose one of {', '.join(PRECISIONS)}; an accelerator brings its "
            "own, Accelerator(mixed_precision=...).",
        )
        require(
            self.checkpoint is None or isinstance(self.checkpoint, str | Path),
            f"Training(checkpoint={self.checkpoint!r}): name a file.",
            TypeError,
        )
        require(
            self.rate is None or self.rate > 0, f"Training(rate={self.rate!r}): the learning rate is a positive number."
        )
        require(
            callable(self.optimizer) or self.optimizer in RATES,
            f"Training(optimizer={self.optimizer!r}): choose one of {', '.join(RATES)}, or give a function of "
            "parameters.",
        )
        require(
            isinstance(self.optimizer, str) or (self.rate is None and self.weight_decay == 0),
            "Training(): an optimizer of your own has its rate and weight decay; leave out rate= and weight_decay=.",
        )

    @property
    def searches_rate(self) -> bool:
        """Whether the rate is one that a few steps have to confirm."""
        return self.rate is None and isinstance(self.optimizer, str)

    def optimizer_of(self, parameters: Sequence[nn.Parameter], normalized: bool) -> torch.optim.Optimizer:
        """Return the optimizer of ``parameters``; ``normalized``: BatchNorm stands behind the layers."""
        if not isinstance(self.optimizer, str):
            made: Any = self.optimizer(parameters)
            require(
                isinstance(made, torch.optim.Optimizer),
                f"Training(optimizer={self.optimizer!r}) returned no torch optimizer.",
                TypeError,
            )
            return made
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        default = RATES[self.optimizer] * (NORMALIZED if normalized else 1.0)
        rate = default if self.rate is None else self.rate
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=rate)
        if self.optimizer == "relative":
            sized = [{**group, "params": [p], "lr": rate * _size(p)} for group in groups for p in group["params"]]
            return torch.optim.AdamW(sized)
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)


def _size(parameter: Any) -> float:
    """Return the root mean square of a parameter, 1 where it is 0."""
    return float(parameter.detach().double().square().mean().sqrt()) or 1.0
