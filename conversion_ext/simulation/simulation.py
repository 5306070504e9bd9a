"""Run a converted network over time and decode its output at every step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from conversion_ext.data.batches import as_inputs, check_inputs
from conversion_ext.data.inputs import with_arrays_as_tensors
from conversion_ext.errors import require
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.readouts.base import Readout
from conversion_ext.readouts.confidence import Confidence
from conversion_ext.simulation.options import RunOptions
from conversion_ext.simulation.run import Runner, Simulation
from conversion_ext.simulation.samples import require_network

__all__ = ["Simulation", "simulate"]


def simulate(
    snn: SpikingNetwork,
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
    delay_per_layer: int = 0,
    generator: torch.Generator | None = None,
) -> Simulation:
    """Run ``snn`` for T steps and return its decoded output after the steps ``at`` (default: all).

    Args:
        snn: the converted network.
        x: input [N, ...] (a tuple for several inputs), which the recipe's encoder turns into steps.
        T: number of time steps.
        x_seq: a sequence [T, N, ...] in place of ``x``, taken as it is.
        readout: how outputs over time become one, by default that of the recipe.
        at: steps after which the output is decoded. Where sites look ahead, T steps are one call, and outputs exist
            ``latency_steps - T`` steps after their step.
        record: quantities kept per site and step: "spikes", "potential" (after the reset, in units of the threshold).
        time_chunk: steps run per call, chosen automatically; memory grows with it and with ``at``, not with T.
        block: number of steps K that a site buffers, by default the recipe's (mostly 1). It averages its input over K
            steps and uses the average as a constant current for its own next K steps. That removes the unevenness
            error inside a block and runs weight layers T/K times, but every site adds K-1 steps of latency. T must be
            a multiple of K, and outputs exist at multiples of K. K = T gives the :func:`twin`.
        reset: False goes on from the present state.
        exit: a rule such as ``readouts.Confidence(12.0)`` ends the run of every sample whose decision is safe; there
            is one output then, that of the step at which each sample ended.
        dtype: "bfloat16" rounds the weights, and the currents that they emit, of all layers between the first spikes
            and the readout. Spikes are exact in any case; membranes, counters and running sums stay float32, and so do
            the current of a constant input and the readout.
        weights: "int8" rounds only those weights, to 8 bits with a scale per output channel (for accuracy: torch has
            no public int8 convolution with real outputs). For all in integers see ``conversion_ext.integer``.
        compile: make kernels of all that a neuron does in 16 steps by ``torch.compile``: the same spikes, worth the
            seconds of the first run where many runs of one kind follow; a warning tells where it does not work.
        delay_per_layer: steps that spikes take from layer to layer, 1 on Loihi 2: every weight layer gets its input so
            many steps late, its bias and a constant current from the first step on. The output needs as many steps more
            as there are layers to say what it says without; simulate so many more.
        generator: makes the noise of a random encoder, by default that of seed 0.

    Returns:
        A :class:`Simulation`: ``outputs`` [len(at), N, ...], ``output`` the last of them, rates and spikes of sites.

    Raises:
        ValueError: for arguments that do not fit the network or each other.
        CalibrationError: for an input that cannot be used: empty, another device or dtype, NaN.

    On a CPU the neurons of SpikingJelly and snnTorch are advanced on their own state without a call of their forward.
    Where a forward hook (or a monitor of the framework) is registered on a neuron, its forward is called and the hook
    runs, in snnTorch once for every step; the spikes are the same, at the speed of the framework.
    """
    inputs = _inputs(snn, x, x_seq)
    options: RunOptions = {
        "readout": readout, "time_chunk": time_chunk, "block": block, "exit": exit, "dtype": dtype, "weights": weights,
        "compile": compile, "delay_per_layer": delay_per_layer, "generator": generator,
    }  # fmt: skip
    return Runner(snn, T, at, options, record, reset)(inputs, x_seq is not None)


def _inputs(snn: SpikingNetwork, x: Any, x_seq: Any) -> tuple[Any, ...]:
    """Check the input before anything runs."""
    require_network(snn)
    require((x is None) != (x_seq is None), "Give either x, an input [N, ...], or x_seq, a sequence [T, N, ...].")
    inputs = with_arrays_as_tensors(as_inputs(x if x_seq is None else x_seq))
    check_inputs(inputs, snn, "x" if x_seq is None else "x_seq")
    return inputs
