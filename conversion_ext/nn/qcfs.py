"""The activation whose values are exactly those that an IF neuron can express in L steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext.errors import require
from conversion_ext.nn.trained import Trained

__all__ = ["QCFS"]

ORDERS = ("clamp-floor", "floor-clamp")


class QCFS(Trained):
    """Quantize, clip, floor, shift: ``h(x) = threshold / L clamp(floor(L x / threshold + 1/2), 0, L)``, L = ``levels``.

    Trained in the place of a ReLU, with a learned ``threshold`` (one for the layer), it becomes an IF neuron of that
    threshold with ``v_init = 1/2``, whose rate after T = L steps of constant current is h(x) exactly.

    floor has the gradient of the identity; ``order`` defines what else has one, with the same values either way:

    - ``"clamp-floor"`` clips x to [0, threshold] first: dh/dx = 1 there and 0 outside;
    - ``"floor-clamp"`` clips the quantized value: dh/dx = 1 where that lies in [0, threshold], which is half a level
      (threshold / 2L) further on both sides.

    In both dh/dthreshold = (h - x) / threshold where dh/dx = 1, 1 above and 0 below.

    Reference: Bu, Fang, Ding, Dai, Yu, Huang, ICLR 2022; clamp-floor is the order of the authors' second repository
    (ANN_SNN_QCFS), floor-clamp that of the first.
    """

    def __init__(self, levels: int = 4, threshold: float = 8.0, order: str = "clamp-floor") -> None:
        require(
            isinstance(levels, int) and not isinstance(levels, bool) and levels >= 1,
            f"QCFS(levels={levels!r}): the number of steps to train for is an integer >= 1.",
        )
        require(threshold > 0, f"QCFS(threshold={threshold!r}): the threshold to start from is positive.")
        require(order in ORDERS, f"QCFS(order={order!r}): use one of {', '.join(ORDERS)}.")
        super().__init__()
        self.levels = levels
        self.order = order
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized activation, same shape."""
        share = x / self.threshold
        if self.order == "clamp-floor":
            share = _clip(share)
        share = _floor(share * self.levels + 0.5) / self.levels
        if self.order == "floor-clamp":
            share = _clip(share)
        return share * self.threshold

    @property
    def site_threshold(self) -> Tensor:
        """The learned threshold."""
        threshold = self.threshold.detach()
        require(
            bool(threshold > 0),
            f"QCFS was trained to a threshold of {float(threshold):.4g}, and only positive ones are thresholds; train "
            "with a smaller learning rate or a larger start.",
        )
        return threshold.clone()

    def extra_repr(self) -> str:
        """Show levels, threshold and order."""
        return f"levels={self.levels}, threshold={self.threshold.item():.4g}, order={self.order!r}"


class _Floor(torch.autograd.Function):
    """floor with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.floor()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]


def _clip(share: Tensor) -> Tensor:
    """Return ``share`` in [0, 1], with a gradient at its ends too, where a floor puts much and torch.clamp has none."""
    return torch.where((share >= 0) & (share <= 1), share, share.detach().clamp(0, 1))


def _floor(x: Tensor) -> Tensor:
    return _Floor.apply(x)
