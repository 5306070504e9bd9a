"""How long a network is silent: when to begin reading its output."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext.analysis.twins import twin
from conversion_ext.data.sequences import Layout
from conversion_ext.errors import CalibrationError, require
from conversion_ext.network.depths import depths
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.simulation.samples import batches_of

__all__ = ["LEAST_STEPS", "estimate_start"]

LEAST_STEPS = 4  # what Bu et al. leave to read


def estimate_start(
    snn: SpikingNetwork, data: Any, T: int, *, ann: nn.Module | None = None, sequence: Layout = None
) -> int:
    """Return how many first steps of T to discard, for ``MeanOutput(start=...)``: the time until the output spikes.

    A layer waits for its fastest neuron, ``min_i (1 - v_init_i) / mean(max(z_i, 0))`` steps with z the current in units
    of the threshold and the mean over the samples in the network's twin; layers one behind the other add up, of
    branches the slowest counts. At least 4 steps are left to read, while T has them.

    Args:
        snn: a converted network.
        data: a tensor [N, ...] or a re-iterable of batches; targets are not used.
        T: the number of time steps.
        ann: not used; all analyses are called alike.
        sequence: as for :func:`evaluate`; of a sequence the mean over its frames counts.

    Returns:
        The number of steps to discard, at least 0.

    Raises:
        ValueError: where T leaves nothing to discard.

    Reference: Bu, Li, Yu, CVPR 2025 (a chain of layers, and ``max_i`` of the mean activation).
    """
    network = twin(snn, T)
    require(T > LEAST_STEPS, f"T={T}: with {LEAST_STEPS} steps or fewer there are none to discard; read them all.")
    sites = network.snn.sites().values()
    sums: dict[str, Tensor] = {}

    def hook(site: SpikingSite, args: tuple[Any, ...]) -> None:
        z = site.current(args[0]).clamp_min(0).sum(0, keepdim=True)
        sums[site.key] = sums[site.key] + z if site.key in sums else z

    handles = [site.register_forward_pre_hook(hook) for site in sites]
    samples = 0
    try:
        with torch.no_grad():
            for batch in batches_of(snn, data, sequence=sequence):
                network(*batch.mean())
                samples += len(batch)
    finally:
        for handle in handles:
            handle.remove()
    require(samples > 0, "The data holds no batch; pass at least one.", CalibrationError)
    waits = {site.key: _wait(site, sums[site.key] / samples) for site in sites if site.key in sums}
    longest = max(depths(snn.body, lambda site: waits.get(site.key, 0.0)).values(), default=0.0)
    return min(math.ceil(longest), T - LEAST_STEPS)


def _wait(site: SpikingSite, z: Tensor) -> float:
    """Return the steps until the fastest neuron of a site spikes under mean currents z [1, ...]."""
    wait = (1 - site.v_init) / z
    return wait[z > 0].amin().item() if bool((z > 0).any()) else 0.0
