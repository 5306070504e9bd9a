"""How many steps a simulation takes: those that count, those before them, and those that sites spend waiting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from conversion_ext.errors import require
from conversion_ext.network.clocks import latency_of
from conversion_ext.network.depths import depths
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.simulation.samples import require_steps

__all__ = ["Schedule", "schedule"]


@dataclass(frozen=True)
class Schedule:
    """The steps of one simulation.

    ``T`` steps count, in blocks of ``block``, after ``warm_up`` steps of the whole network; the first call holds at
    least ``min_first_call``. ``total_steps``: steps that a neuron makes; ``latency_steps``: from the first input to the
    decision after T steps.
    """

    T: int
    block: int
    warm_up: int
    min_first_call: int
    total_steps: int
    latency_steps: int


def schedule(
    snn: SpikingNetwork,
    sites: Mapping[str, SpikingSite],
    T: int | None,
    block: int | None = None,
    length: int | None = None,
) -> Schedule:
    """Return the schedule of T steps of ``snn`` with its ``sites``, in blocks of ``block`` (None: the recipe's).

    ``length`` is that of a sequence of frames, a warm-up included.

    A spike reaches the next site within its step, so a plain network decides after T steps. What waits adds up along
    the longest chain of sites. Blocks of K: a site takes its first step together with the last one of its
    predecessor's block, K-1 steps after it; so D sites in a row end (D-1)(K-1) steps late, D(K-1) where frames have to
    be waited for. Steppings that first go through ``lag_steps`` steps of their input (see ``OffsetSpike``) delay every
    site's first spike by as many steps. Sites that look ahead lag behind their input; all T steps are one call then.
    """
    steppings = {type(site.stepping): site.stepping for site in sites.values()}.values()
    warm_up = max((s.warm_up for s in steppings), default=0)
    if length is not None:
        T = T or length - warm_up
        before = f" after {warm_up} of warm-up" if warm_up else ""
        require(T + warm_up <= length, f"T={T}{before}, but x_seq holds {length} steps; give T <= {length - warm_up}.")
    T = require_steps(T)
    recipe = snn.conversion.recipe
    K = recipe.block_of(T, block)
    require(
        K == 1 or snn.conversion.widths is None,
        f"block={K}: means of steps are no integers, which this network computes with; use block=1.",
    )
    lag = max((s.lag_steps for s in steppings), default=0)
    first = max((s.min_first_call for s in steppings), default=1)
    require(
        K == 1 or not (warm_up or lag),
        f"block={K} and a tuner that acts while simulating both set the pace of the sites; use one of them.",
    )
    require(
        T >= first,
        f"T={T}: every site of this network looks at {first} steps before its first; simulate T >= {first} "
        "and name earlier outputs with at=.",
    )
    clocked = any(site.clock is not None for site in sites.values())
    require(
        not clocked or K == 1,
        f"block={K}: this network looks ahead step by step and gains nothing from waiting for blocks; use block=1.",
    )
    if clocked:
        first = T
        for site in sites.values():
            site.spec.timed(T)
    late = 0  # of a plain network: no walk over its graph, which takes as long as some of its steps
    if K > 1:
        waited = length is not None or not recipe.encoder.constant
        chain = max(depths(snn.body).values(), default=0)
        late = (K - 1) * max(0, chain if waited else chain - 1)
    elif lag:
        late = max(depths(snn.body, lambda site: site.stepping.lag_steps).values(), default=0)
    elif clocked:
        late = latency_of(snn.body)
    started = any(s.t for s in steppings)  # a simulation that goes on has been through these steps
    return Schedule(T, K, warm_up, first, warm_up + (0 if started else lag) + T, warm_up + late + T)
