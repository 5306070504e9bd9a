"""SpikingJelly's own converter, to compare with: the same network, the same data, the same readout."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from conversion_ext.errors import optional_import, require

__all__ = ["SETTINGS", "converted", "run"]

SETTINGS: dict[str, dict[str, Any]] = {
    "99.9 %": {"mode": "99.9%"},
    "99.9 % per channel, half threshold": {"mode": "99.9%", "channel_wise": True, "half_threshold": True},
}


def converted(ann: nn.Module, loader: DataLoader[Any], setting: str) -> nn.Module:
    """Return what SpikingJelly's converter makes of ``ann``, by SpikingJelly 2.0 or 0.0.0.0.14.

    Raises:
        ValueError: where this version has no such setting, or refuses the network.
    """
    ann2snn = optional_import("spikingjelly.activation_based.ann2snn", "SpikingJelly", "spikingjelly")
    options = SETTINGS[setting]
    with redirect_stderr(io.StringIO()):  # its own progress bar
        if hasattr(ann2snn, "RateCodingRecipe"):
            return ann2snn.Converter(ann2snn.RateCodingRecipe(loader, **options)).convert(ann).eval()
        require(set(options) == {"mode"}, f"This version of SpikingJelly has no {setting}.")
        return ann2snn.Converter(loader, **options)(ann).eval()


@torch.no_grad()
def run(snn: nn.Module, batches: Iterator[Tensor], T: int) -> tuple[Tensor, float]:
    """Return mean outputs after every step, [T, N, classes], and spikes per sample."""
    functional = optional_import("spikingjelly.activation_based.functional", "SpikingJelly", "spikingjelly")
    neuron = optional_import("spikingjelly.activation_based.neuron", "SpikingJelly", "spikingjelly")
    counts: list[float] = []
    hooks = [
        module.register_forward_hook(lambda _, __, out: counts.append(float((out != 0).sum())))
        for module in snn.modules()
        if isinstance(module, neuron.BaseNode)
    ]
    parts = []
    for x in batches:
        functional.reset_net(snn)
        steps = torch.stack([snn(x) for _ in range(T)])
        parts.append(steps.cumsum(0) / torch.arange(1, T + 1)[:, None, None])
    for hook in hooks:
        hook.remove()
    outputs = torch.cat(parts, dim=1)
    return outputs, sum(counts) / outputs.shape[1]
