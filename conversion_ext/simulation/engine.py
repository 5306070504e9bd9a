"""The time loop: what does not depend on time runs once, the rest in chunks of steps folded into the batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from conversion_ext import graph
from conversion_ext.backends.base import is_hooked
from conversion_ext.errors import require
from conversion_ext.exact import state_dtype
from conversion_ext.graph.values import map_tensors
from conversion_ext.network.session import Room, session
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.network.state import NetworkState
from conversion_ext.neurons import advance, advance_compiled
from conversion_ext.simulation.delays import delayed
from conversion_ext.simulation.inputs import Reader
from conversion_ext.simulation.precision import narrowed
from conversion_ext.simulation.schedule import Schedule, schedule
from conversion_ext.simulation.split import fresh_currents, halves, split
from conversion_ext.types import Steps

__all__ = ["Engine"]

# Bytes of an average activation of one call on a CPU: more steps per call save Python, and weights are read less often,
# until activations leave a cache of a few MiB. Measured on the 28x28 networks of tests/benchmarks at batch 1 to 64.
CACHE = 5 << 20
# Bytes of its largest activation: more than 32 MiB the allocator would fetch anew from the system each time.
LARGEST = 30 << 20


class Engine:
    """Runs a converted network over time. Built once, used for any number of batches."""

    def __init__(
        self,
        snn: SpikingNetwork,
        dtype: str | torch.dtype | None = None,
        weights: str | None = None,
        compile: bool = False,  # noqa: A002
        delay_per_layer: int = 0,
    ) -> None:
        require(
            snn.conversion.widths is None or (dtype is None and weights is None),
            "dtype= and weights= would round what is in integers already; leave them out.",
        )
        snn = delayed(snn, delay_per_layer) if delay_per_layer else snn
        self.snn = snn
        self.run = advance_compiled if compile else advance
        self.prologue, self.main = halves(snn.body)
        if dtype is not None or weights is not None:  # the prologue is run once: nothing to gain from fewer bits
            self.main = split(narrowed(snn.body, dtype, weights))[1]
        self.narrow = dtype is not None
        self.fresh = fresh_currents(self.main)
        self.sites = snn.sites()
        self.state = NetworkState(snn)
        sizes = [graph.info(n).shape.numel() for n in snn.body.graph.nodes if graph.info(n).is_tensor]
        size, largest = sum(sizes) / max(1, len(sizes)), max(sizes, default=1)
        # How many samples of one step go into one call.
        self.rows = max(1, int(min(CACHE / (4 * size), LARGEST / (4 * largest))))

    @property
    def most(self) -> int:
        """How many samples of a large batch go into one call, so that there is room for some steps of them."""
        return max(1, self.rows // 4)

    def schedule(self, T: int | None, block: int | None = None, length: int | None = None) -> Schedule:
        """Return the schedule of a run: see :func:`schedule`."""
        return schedule(self.snn, self.sites, T, block, length)

    def chunks(self, N: int, plan: Schedule, time_chunk: int | None) -> Iterator[int]:
        """Yield how many steps (or blocks) to run in each call, about as many in all.

        No call goes beyond the end of the warm-up.
        """
        require(
            time_chunk is None or time_chunk >= plan.T or not any(site.clock for site in self.sites.values()),
            f"time_chunk={time_chunk}: this network looks ahead, so all T={plan.T} steps are one call; leave it out.",
        )
        chunk = max(plan.min_first_call, time_chunk // plan.block if time_chunk else self.rows // N)
        for steps in (plan.warm_up, plan.T // plan.block):
            even = max(plan.min_first_call, -(-steps // max(1, -(-steps // chunk))))
            yield from (min(even, steps - first) for first in range(0, steps, even))

    @contextmanager
    def running(self, counts: dict[str, Tensor], room: Room | None = None, block: int = 1) -> Iterator[None]:
        """Own the state of the network: no autograd, and it is overwritten where that saves a copy; count spikes.

        ``room`` gives memory for potentials and counts. A ``block`` of steps reads its current more than once.
        """
        layers = self.fresh.items() if block == 1 else ()
        fresh = [key for key, layer in layers if not any(is_hooked(part) for part in layer.modules())]
        self.state.apply(lambda part: part.detach().clone())
        try:
            with session(self.sites.values(), self.run, counts, room, fresh), torch.inference_mode():
                yield
        finally:
            # What was made in inference mode cannot be written to, or have gradients, after it.
            self.state.apply(lambda part: part.clone() if part.is_inference() else part)

    def constant(self, inputs: tuple[Any, ...], chunks: Iterable[int], block: int = 1) -> Iterator[tuple[int, Any]]:
        """Yield (K, output [K*N, ...]) of ``chunks`` of K steps under constant current, the prologue run once."""
        static = self.prologue(*inputs)
        for K in chunks:
            yield K, self.advance(static, K, block)

    def advance(self, static: tuple[Any, ...], K: int, block: int = 1) -> Any:
        """Return the output [K*N, ...] of the next K steps (or blocks) under what the prologue made of the input."""
        return self._wide(self.main(*static, Steps(K, constant=True, block=block)))

    def sequence(self, read: Reader, chunks: Iterable[int], block: int = 1) -> Iterator[tuple[int, Any]]:
        """Yield (K, output [K*N, ...]) for inputs ``read(first, K)``, each [K, N, ...]."""
        first = 0
        for K in chunks:
            folded = tuple(v.flatten(0, 1) if isinstance(v, Tensor) else v for v in read(first, K))
            yield K, self._wide(self.main(*self.prologue(*folded), Steps(K, block=block)))
            first += K

    def _wide(self, output: Any) -> Any:
        """Return an output of narrowed layers in float32 or wider."""
        return map_tensors(output, lambda v: v.to(state_dtype(v.dtype))) if self.narrow else output
