"""Run a converted network over time and decode its output at every step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from conversion_ext.data.batches import check_inputs
from conversion_ext.errors import require
from conversion_ext.graph.values import map_tensors
from conversion_ext.network.spiking_network import Root
from conversion_ext.readouts.base import Readout
from conversion_ext.readouts.confidence import Confidence
from conversion_ext.simulation.decoder import Decoder
from conversion_ext.simulation.early_exit import run_until_safe
from conversion_ext.simulation.engine import Engine
from conversion_ext.simulation.recorder import RECORDS, Recorder
from conversion_ext.simulation.run import run, times
from conversion_ext.simulation.schedule import Schedule

__all__ = ["Simulation", "simulate"]


@dataclass
class Simulation:
    """What came of a run of T steps over N samples.

    ``outputs``: decoded output after each step of ``at``, [len(at), N, ...] (tuples and dicts keep their structure);
    ``firing_rate``: {site: [N, ...]} spikes per step, signed ones counted by magnitude; ``spikes``: {site: [N]} spikes
    per sample. A tuner that acts while simulating may need steps before the T that count: what is sent in them is in
    ``spikes``, and they are in ``total_steps``, the steps that a neuron makes, but not in ``firing_rate``.
    ``latency_steps``: from the first input to the decision, end to end, so that what waits for its predecessor adds
    up over depth (see ``schedule``). ``recorded``: {quantity: {site: [T, N, ...]}}, a warm-up included.
    ``steps``: with ``exit``, the steps [N] after which each sample was let go; rates and ``output`` are those of then.
    """

    outputs: Any
    at: tuple[int, ...]
    firing_rate: dict[str, Tensor]
    spikes: dict[str, Tensor]
    total_steps: int
    latency_steps: int
    recorded: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    steps: Tensor | None = None

    @property
    def output(self) -> Any:
        """The decoded output after the last step of ``at``."""
        return map_tensors(self.outputs, lambda v: v[-1])

    @property
    def spikes_per_sample(self) -> Tensor:
        """Spikes per sample over all sites and steps, [N]."""
        return sum(self.spikes.values(), torch.zeros(()))


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
    it is. ``readout`` overrides the recipe's. ``record`` names quantities kept per site and step: "spikes",
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

    On a CPU the neurons of SpikingJelly and snnTorch are advanced on their own state without a call of their forward,
    so hooks on them see nothing; hook ``site.stepping``, whose output is the spikes, instead.
    """
    inputs = _inputs(snn, x, x_seq)
    engine, left = Engine(snn, dtype, weights, compile), None
    if reset:
        engine.memories.reset()
    length = None if x_seq is None else next(len(v) for v in inputs if isinstance(v, Tensor))
    plan = engine.schedule(T, block, length)
    steps = times(at, plan.T, plan.block)
    unknown = [name for name in record if name not in RECORDS]
    require(not unknown, f"record={list(record)}: {unknown} cannot be recorded; there are {', '.join(RECORDS)}.")
    require(time_chunk is None or time_chunk >= 1, f"time_chunk={time_chunk}: give a number of steps >= 1, or None.")
    if "potential" in record:
        time_chunk = 1  # a neuron shows its potential after a call, so every step must be one
        single = plan.block == 1 and plan.together == 1
        require(single, "record=('potential',) needs single steps, so block=1 and a recipe without OffsetSpike.")
    with Recorder(engine.sites, record) as recorder:
        if exit is not None:
            _check_exit(snn, plan, at is None and x_seq is None and not record and reset)
            steps, decoder = (plan.T,), Decoder(readout or snn.conversion.recipe.readout)
            output, left = run_until_safe(engine, inputs, plan.T, recorder, decoder, exit)
            outputs = output.unsqueeze(0)
        else:
            sequence = x_seq is not None
            outputs = run(engine, inputs, plan, steps, recorder, readout, time_chunk, sequence, generator)
    rates, spikes, kept = recorder.rates(plan.T if left is None else left), recorder.spikes(), recorder.recorded()
    return Simulation(outputs, steps, rates, spikes, plan.total_steps, plan.latency_steps, kept, left)


def _check_exit(snn: Root, plan: Schedule, plain: bool) -> None:
    require(
        plain and plan.block == 1 and plan.total_steps == plan.T and snn.conversion.recipe.encoder.constant,
        "exit= lets samples go at different steps, which needs a constant input x, single steps from a reset and no "
        "tuner that acts while simulating; leave out x_seq=, at=, record=, block= and reset=False.",
    )


def _inputs(snn: Root, x: Any, x_seq: Any) -> tuple[Any, ...]:
    """Check the input before anything runs."""
    require(
        isinstance(snn, Root), f"snn is a {type(snn).__name__}; pass what conversion_ext.convert returned.", TypeError
    )
    require((x is None) != (x_seq is None), "Give either x, an input [N, ...], or x_seq, a sequence [T, N, ...].")
    value = x if x_seq is None else x_seq
    inputs = value if isinstance(value, tuple) else (value,)
    check_inputs(inputs, snn, "x" if x_seq is None else "x_seq")
    return inputs
