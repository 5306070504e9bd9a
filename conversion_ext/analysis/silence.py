"""How long a network is silent: when to begin reading its output."""

from __future__ import annotations

import math
from typing import Any

import torch

from conversion_ext.analysis.twins import twin
from conversion_ext.data.batches import check_inputs
from conversion_ext.errors import require
from conversion_ext.network.depths import depths
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.spiking_network import Root

__all__ = ["LEAST_STEPS", "estimate_start"]

LEAST_STEPS = 4  # what Bu et al. leave to read


def estimate_start(snn: Root, x: Any, T: int) -> int:
    """Return how many first steps of T to discard, for ``MeanOutput(start=...)``: the time until the output wakes.

    A layer waits for its fastest neuron, ``min_i (1 - v_init_i) / mean(max(z_i, 0))`` steps with z the current in units
    of the threshold and the mean over the samples x [N, ...] (a tuple for several inputs) in the network's twin; layers
    one behind the other add up, of branches the slowest counts. At least 4 steps are left to read, while T has them.

    Reference: Bu, Li, Yu, CVPR 2025 (a chain of layers, and ``max_i`` of the mean activation).
    """
    inputs = x if isinstance(x, tuple) else (x,)
    network = twin(snn, T)
    check_inputs(inputs, snn, "x")
    require(T > LEAST_STEPS, f"T={T}: with {LEAST_STEPS} steps or fewer there are none to discard; read them all.")
    waits: dict[str, float] = {}

    def hook(site: SpikingSite, args: tuple[Any, ...]) -> None:
        z = site.current(args[0]).clamp_min(0).mean(0, keepdim=True)
        wait = (1 - site.v_init) / z
        waits[site.key] = wait[z > 0].amin().item() if bool((z > 0).any()) else 0.0

    handles = [site.register_forward_pre_hook(hook) for site in network.snn.sites().values()]
    try:
        with torch.no_grad():
            network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    longest = max(depths(snn.body, lambda site: waits.get(site.key, 0.0)).values(), default=0.0)
    return min(math.ceil(longest), T - LEAST_STEPS)
