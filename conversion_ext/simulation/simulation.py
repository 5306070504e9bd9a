"""Run a converted network over time and decode its output at every step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from conversion_ext.data.batches import as_inputs, check_inputs
from conversion_ext.errors import require
from conversion_ext.network.spiking_network import Root
from conversion_ext.readouts.base import Readout
from conversion_ext.readouts.confidence import Confidence
from conversion_ext.simulation.options import RunOptions
from conversion_ext.simulation.run import Runner, Simulation
from conversion_ext.simulation.samples import require_network

__all__ = ["Simulation", "simulate"]


def simulate(
    snn: Root,
    x: Any = None,
    T: int | None = None,
    *,
    x_seq: Any = None,
    readout: Readout | None = None,
    at: Iterable[int] | None = None,
    record: Sequence[str] = (),
    time_chunk: int | None = None,
    block: int | None = None,
    reset: bool = True,
    exit: Confidence | None = None,  # noqa: A002
    dtype: str | torch.dtype | None = None,
    weights: str | None = None,
    compile: bool = False,  # noqa: A002
    generator: torch.Generator | None = None,
) -> Simulation:
    """Run ``snn`` for T steps and return its decoded output after the steps ``at`` (default: all).

    ``x`` [N, ...] (a tuple for several inputs) goes through the recipe's encoder; ``x_seq`` [T, N, ...] is taken as
    it is. Where sites look ahead, T steps are one call, and outputs exist ``latency_steps - T`` steps after their
    step. ``readout`` overrides the recipe's. ``record`` names quantities kept per site and step: "spikes",
    "potential" (after the reset, in units of the threshold). ``generator`` makes the noise of a random encoder, by
    default that of seed 0. ``time_chunk`` steps run per call, chosen
    automatically; memory grows with it and with ``at``, not with T. ``reset=False`` goes on from the present state.

    ``block`` K (by default the recipe's, mostly 1): every site waits for K steps of its input and takes their mean as
    its current for K steps, so weight layers run T/K times and spike trains of other sites cannot be uneven within a
    block; outputs exist at block ends. K = T gives the :func:`twin`. A site starts K-1 steps after the one before it.

    ``exit``: a rule such as ``readouts.Confidence(12.0)`` lets go of every sample whose decision is safe; there is one
    output then, that of the step at which each sample left.

    ``dtype="bfloat16"`` rounds the weights, and the currents that they emit, of all layers between the first spikes
    and the readout; ``weights="int8"`` only those weights, to 8 bits with a scale per output channel (for accuracy:
    torch has no public int8 convolution with real outputs). Spikes are exact in any case; membranes, counters
    and running sums stay float32, and so do the current of a constant input and the readout. For all in integers see
    ``conversion_ext.integer``.

    ``compile=True`` makes kernels of all that a neuron does in 16 steps by ``torch.compile``: the same spikes, worth
    the seconds of the first run where many runs of one kind follow; where it does not work, that is said once.

    On a CPU the neurons of SpikingJelly and snnTorch are advanced on their own state without a call of their forward.
    Where a forward hook (or a monitor of the framework) is registered on a neuron, its forward is called and the hook
    runs, in snnTorch once for every step; the spikes are the same, at the speed of the framework.
    """
    inputs = _inputs(snn, x, x_seq)
    options: RunOptions = {
        "readout": readout, "time_chunk": time_chunk, "block": block, "exit": exit, "dtype": dtype, "weights": weights,
        "compile": compile, "generator": generator,
    }  # fmt: skip
    return Runner(snn, T, at, options, record, reset)(inputs, x_seq is not None)


def _inputs(snn: Root, x: Any, x_seq: Any) -> tuple[Any, ...]:
    """Check the input before anything runs."""
    require_network(snn)
    require((x is None) != (x_seq is None), "Give either x, an input [N, ...], or x_seq, a sequence [T, N, ...].")
    inputs = as_inputs(x if x_seq is None else x_seq)
    check_inputs(inputs, snn, "x" if x_seq is None else "x_seq")
    return inputs
