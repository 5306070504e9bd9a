"""Voltage clamp: deep sites wait until what reaches them has settled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.network.stepping import Neurons, Stepping
from conversion_ext.tuners.base import SteppingTuner, register_tuner

__all__ = ["VoltageClamp"]


@dataclass(frozen=True, kw_only=True)
class VoltageClamp(SteppingTuner):
    """Hold the potential of the site at depth l for its first ``steps * l`` steps: no input, no spike.

    Use it when a deep network takes long to settle at large T.

    Depth is counted in sites along the longest chain from an input, the first site having l = 1. In this simulator a
    spike reaches the next site within its step, so the clamp only keeps the transient of shallow sites out of the
    deep ones. The last of D sites spikes after steps * D steps; ``MeanOutput(start=steps * D)`` divides by the
    effective steps only.

    Reference: Rueckauer, Lungu, Hu, Pfeiffer, Liu, Front. Neurosci. 2017 (10 steps per layer for Inception-V3).
    """

    steps: int = 1

    def __post_init__(self) -> None:
        require(
            isinstance(self.steps, int) and self.steps >= 1,
            f"VoltageClamp(steps={self.steps!r}): the delay per layer is an integer number of steps >= 1.",
        )

    def stepping(self, depth: int) -> Stepping:
        """Return a clamp of ``steps * depth`` steps."""
        return Clamped(self.steps * depth)


class Clamped(Stepping):
    """Hold the potential for the first ``hold`` steps."""

    def __init__(self, hold: int) -> None:
        super().__init__()
        self.hold = hold

    def steps(self, neurons: Neurons, z_seq: Tensor) -> Tensor:
        """Return no spikes while the clamp holds, then those of the neurons."""
        held = min(max(self.hold - self.t, 0), z_seq.shape[0])
        if held == 0:
            return neurons.run(z_seq)
        silent = torch.zeros_like(z_seq[:held])
        return torch.cat([silent, neurons.run(z_seq[held:])]) if held < z_seq.shape[0] else silent

    def extra_repr(self) -> str:
        """Show the steps held."""
        return f"hold={self.hold}"


register_tuner("voltage_clamp", VoltageClamp)
