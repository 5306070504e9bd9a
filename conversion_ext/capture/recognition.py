"""Activations of other repositories that compute what one of ours does, found by what they compute."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from conversion_ext.graph.surgery import is_stock
from conversion_ext.nn.qcfs import QCFS
from conversion_ext.nn.trained import Trained

__all__ = ["recognize_quantized"]

MOST_LEVELS = 64
POINTS = 4096  # inputs at which a module is asked; between two levels lie at least 40 of them


def recognize_quantized(model: nn.Module, keep: Callable[[nn.Module], bool]) -> None:
    """Put QCFS in the place of every module of ``model`` that quantizes and clips as QCFS does; keep those of ``keep``.

    Such is the class ``IF`` of the repositories of QCFS, SRP and COS: one learned threshold, levels from 0 to it. What
    counts is that the module gives the values of QCFS at every point of a fine grid.
    """
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if not (is_stock(module) or isinstance(module, Trained) or keep(module)):
                replacement = _quantized(module)
                if replacement is not None:
                    setattr(parent, name, replacement.eval())


@torch.no_grad()
def _quantized(module: nn.Module) -> QCFS | None:
    """Return the QCFS that computes what ``module`` does, or None."""
    parameters = list(module.parameters())
    if len(parameters) != 1 or parameters[0].numel() != 1 or not float(parameters[0]) > 0:
        return None
    threshold = float(parameters[0])
    grid = (torch.arange(POINTS, device=parameters[0].device) * 1.6180339887 / POINTS - 0.3) * threshold
    grid = grid.to(parameters[0].dtype)
    values = _values(module, grid[None])
    if values is None:
        return None
    levels = len(((values / threshold) * 1e4).round().unique()) - 1
    if not 1 <= levels <= MOST_LEVELS:
        return None
    replacement = QCFS(levels, threshold).to(grid.device, grid.dtype)
    replacement.threshold.requires_grad_(parameters[0].requires_grad)
    # At a step itself the last bit decides, so a few points may differ.
    same = (replacement(grid[None]) - values).abs() <= 1e-4 * threshold
    return replacement if int((~same).sum()) <= levels else None


def _values(module: nn.Module, x: Tensor) -> Tensor | None:
    """Return what ``module`` gives, None where it does not map one tensor to one of its shape."""
    try:
        value = module(x)
    except Exception:  # of the user's own code, which was not made for this question
        return None
    return value if isinstance(value, Tensor) and value.shape == x.shape else None
