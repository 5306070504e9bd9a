"""Gradients step by step, without a graph through time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.network.state import NetworkState
from conversion_ext.simulation.inputs import Presentation
from conversion_ext.training.gradients.base import Gradient, Objective, register_gradient
from conversion_ext.training.student import Student

__all__ = ["Online"]


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
        ahead = next((site.key for site in student.snn.sites().values() if site.clock is not None), None)
        require(
            ahead is None or self.steps >= total,
            f"{self} goes by {self.steps} of T={batch.T} steps, and {ahead} looks ahead, for which all are one call; "
            "use ThroughTime(), Rate() or DSR().",
        )
        state = NetworkState(student.snn)
        for first in range(0, total, self.steps):
            count = min(self.steps, total - first)
            state.apply(torch.detach)
            outputs, rates = network(*batch.steps(first, count, batch.block))
            sums = {key: count * rate + sent.get(key, 0.0) for key, rate in rates.items()}
            so_far = {key: value / (first + count) for key, value in sums.items()}
            yield objective(torch.cat([*past, outputs]), so_far) * (count / total)
            past.append(outputs.detach())
            sent = {key: value.detach() for key, value in sums.items()}


register_gradient("online", Online())
