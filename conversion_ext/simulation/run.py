"""One run of a network over T steps: options checked, engine, recorder, decoder, and what came of it."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from conversion_ext.data.inputs import tensors_of
from conversion_ext.errors import StateError, require
from conversion_ext.graph.values import map_tensors
from conversion_ext.network.session import Room
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.nn.softmax import SpikingSoftmax
from conversion_ext.readouts.base import Readout
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.simulation.decoder import Decoder
from conversion_ext.simulation.early_exit import run_until_safe
from conversion_ext.simulation.engine import Engine
from conversion_ext.simulation.inputs import encoded, frames, means
from conversion_ext.simulation.options import RunOptions
from conversion_ext.simulation.recorder import RECORDS, Recorder
from conversion_ext.simulation.schedule import Schedule
from conversion_ext.simulation.slices import Joined, slices
from conversion_ext.tables import Report, Sheet, plain, spread
from conversion_ext.types import whole

__all__ = ["Runner", "Simulation", "run", "times"]


@dataclass(repr=False)
class Simulation(Report):
    """What came of a run of T steps over N samples.

    ``outputs``: decoded output after each step of ``at``, [len(at), N, ...] (tuples and dicts keep their structure);
    ``firing_rate``: {site: [N, ...]} spikes per step, signed ones counted by magnitude ([N, k, ...] where the network
    folds k windows or frames of each sample into its batch); ``spikes``: {site: [N]} spikes
    per sample. Some tuners (ResidualPotential, OffsetSpike) run warm-up steps first. Warm-up spikes are included in
    ``spikes``, warm-up steps in ``total_steps``; ``firing_rate`` covers the T counted steps only.
    ``latency_steps``: from the first input to the decision, end to end, so that what waits for its predecessor adds
    up over depth (see ``schedule``). ``recorded``: {quantity: {site: [T, N, ...]}}, a warm-up included.
    ``steps``: with ``exit``, the steps [N] after which each sample exited; rates and ``output`` are those of then.
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

    def sheet(self) -> Sheet:
        """Return the spikes of each site."""
        rows = [
            (key, f"{float(rate.double().mean()):.4f}", f"{float(self.spikes[key].double().mean()):,.1f}")
            for key, rate in self.firing_rate.items()
        ]
        total = ("sum", "", f"{float(self.spikes_per_sample.double().mean()):,.1f}")
        shapes = map_tensors(self.output, lambda v: list(v.shape))
        notes = [f"output: {shapes}", f"outputs after steps {', '.join(str(self.at[i]) for i in spread(len(self.at)))}"]
        if self.steps is not None:
            notes.append(f"{float(self.steps.double().mean()):.2f} steps per sample with early exit")
        title = f"{self.total_steps} steps, latency {self.latency_steps}"
        return Sheet(("site", "spikes per neuron and step", "spikes per sample"), [*rows, total], title, notes)

    def to_dict(self) -> dict[str, Any]:
        """Return the last output, and means of rates and spikes, as plain data."""
        return {
            "output": plain(self.output),
            "at": list(self.at),
            "firing_rate": {key: float(rate.double().mean()) for key, rate in self.firing_rate.items()},
            "spikes": {key: float(spikes.double().mean()) for key, spikes in self.spikes.items()},
            "total_steps": self.total_steps,
            "latency_steps": self.latency_steps,
            "steps": plain(self.steps),
        }


class Runner:
    """Runs a network for T steps on any number of batches, with the same options."""

    def __init__(
        self,
        snn: SpikingNetwork,
        T: int | None,
        at: Iterable[int] | None = None,
        options: RunOptions | None = None,
        record: Sequence[str] = (),
        reset: bool = True,
    ) -> None:
        options = options or {}
        unknown = [name for name in options if name not in RunOptions.__annotations__]
        require(
            not unknown,
            f"There is no option {', '.join(unknown)}; a run takes {', '.join(RunOptions.__annotations__)}.",
            TypeError,
        )
        self.snn, self.T, self.at, self.record, self.reset = snn, T, _steps(at), record, reset
        self.readout, self.exit = options.get("readout"), options.get("exit")
        self.time_chunk, self.block = options.get("time_chunk"), options.get("block")
        self.generator = options.get("generator")
        self.delay = options.get("delay_per_layer", 0)
        self.engine = Engine(
            snn, options.get("dtype"), options.get("weights"), options.get("compile", False), self.delay
        )
        require(not isinstance(record, str), f"record={record!r}: give a tuple, record=({record!r},).")
        wrong = [name for name in record if name not in RECORDS]
        require(not wrong, f"record={list(record)}: {wrong} cannot be recorded; there are {', '.join(RECORDS)}.")
        chunk = self.time_chunk
        require(chunk is None or (whole(chunk) or 0) >= 1, f"time_chunk={chunk}: give a number of steps >= 1, or None.")

    def __call__(self, inputs: tuple[Any, ...], sequence: bool = False, last: bool = False) -> Simulation:
        """Run on inputs [N, ...], or frames [T, N, ...]; ``last``: keep the output of the last step alone."""
        inputs = tensors_of(inputs)
        if self.reset:
            self.engine.state.reset()
        length = len(inputs[0]) if sequence else None
        plan = self.engine.schedule(self.T, self.block, length)
        steps = times((plan.T,) if last else self.at, plan.T, plan.block)
        self._check(plan, steps, sequence)
        parts = slices(inputs, self.engine.most)
        parts = parts if len(parts) == 1 or self._may_slice(inputs, plan, sequence) else [inputs]
        try:
            return self._run(inputs, plan, steps, sequence) if len(parts) == 1 else self._in_turn(parts, plan, steps)
        except StateError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise self.snn.misfit(inputs, sequence, error) from error

    def _may_slice(self, inputs: tuple[Any, ...], plan: Schedule, sequence: bool) -> bool:
        """Return whether parts of the batch, one after the other from a reset, do what the whole batch does."""
        one_by_one = self.exit is None and self.reset and not sequence and not plan.warm_up
        constant = self.snn.conversion.recipe.encoder.constant
        drawn = any(isinstance(m, SpikingSoftmax) and m.method != "membrane" for m in self.snn.modules())
        cached = all(not isinstance(v, Tensor) or v.device.type == "cpu" for v in inputs)
        return one_by_one and constant and cached and not drawn

    def _in_turn(self, parts: list[tuple[Any, ...]], plan: Schedule, steps: tuple[int, ...]) -> Simulation:
        """Run slices of a batch, and leave the state that the whole batch would have left."""
        state, sizes = self.engine.state, [_samples(part) for part in parts]
        whole = Joined(sum(sizes))
        for part, n in zip(parts, sizes, strict=True):
            state.reset()
            whole.begin(n)
            run = self._run(part, plan, steps, False, whole.room)
            whole.add((run.firing_rate, run.spikes, state.snapshot()), 0)
            whole.add((run.outputs, run.recorded), 1)
        firing_rate, spikes, left = whole.values(0)
        outputs, recorded = whole.values(1)
        state.restore(left)
        state.resize(sizes[0], sum(sizes))
        return Simulation(outputs, steps, firing_rate, spikes, plan.total_steps, plan.latency_steps, recorded)

    def _run(
        self,
        inputs: tuple[Any, ...],
        plan: Schedule,
        steps: tuple[int, ...],
        sequence: bool,
        room: Room | None = None,
    ) -> Simulation:
        engine, left = self.engine, None
        samples = _samples(inputs, sequence)
        with Recorder(engine.sites, samples, self.record) as recorder:
            if self.exit is not None:
                steps, decoder = (plan.T,), Decoder(self.readout or self.snn.conversion.recipe.readout)
                output, left = run_until_safe(engine, inputs, plan.T, recorder, decoder, self.exit)
                outputs = output.unsqueeze(0)
            else:
                chunk = 1 if "potential" in self.record else self.time_chunk  # it is read after a call
                outputs = run(
                    engine, inputs, plan, steps, recorder, self.readout, chunk, sequence, self.generator, room
                )
        spikes, kept, rates = recorder.spikes(), recorder.recorded(), recorder.rates(plan.T if left is None else left)
        return Simulation(outputs, steps, rates, spikes, plan.total_steps, plan.latency_steps, kept, left)

    def _check(self, plan: Schedule, steps: tuple[int, ...], sequence: bool) -> None:
        recipe = self.snn.conversion.recipe
        _check_readout(recipe, self.readout, plan.block)
        readout = self.readout or recipe.readout
        require(
            readout.first_step <= steps[-1],
            f"readout={readout!r} reads from step {readout.first_step} on, and the last output is that of step "
            f"{steps[-1]}; simulate more steps or let it start earlier.",
        )
        require(
            not self.delay or (plan.block == 1 and self.reset),
            "delay_per_layer= is of single steps from a reset; leave out block= and reset=False.",
        )
        single = plan.block == 1 and plan.min_first_call == 1
        require(
            "potential" not in self.record or single,
            "record=('potential',) needs single steps, so block=1 and a recipe without OffsetSpike and look-ahead.",
        )
        plain_run = self.at is None and not sequence and not self.record and self.reset
        constant = plan.block == 1 and plan.latency_steps == plan.T and recipe.encoder.constant
        require(
            self.exit is None or (plain_run and constant),
            "exit= lets samples go at different steps, which needs a constant input x, single steps from a reset, no "
            "tuner that acts while simulating and no look-ahead; leave out x_seq=, at=, record=, block= and "
            "reset=False.",
        )


def run(
    engine: Engine,
    inputs: tuple[Any, ...],
    plan: Schedule,
    at: Sequence[int],
    recorder: Recorder,
    readout: Readout | None = None,
    time_chunk: int | None = None,
    sequence: bool = False,
    generator: torch.Generator | None = None,
    room: Room | None = None,
) -> Any:
    """Run the engine on one batch and return the outputs decoded after the steps ``at``.

    ``room`` gives memory for potentials and counts.
    """
    recipe, block, warm_up = engine.snn.conversion.recipe, plan.block, plan.warm_up
    decoder = Decoder(readout or recipe.readout)
    chunks = engine.chunks(_samples(inputs, sequence), plan, time_chunk)
    if sequence:
        outputs = engine.sequence(means(frames(inputs), block), chunks, block)
    elif recipe.encoder.constant:
        outputs = engine.constant(inputs, chunks, block)
    else:
        read = encoded(recipe.encoder, inputs, plan.warm_up + plan.T, generator)
        outputs = engine.sequence(means(read, block), chunks, block)
    kept: list[list[Tensor]] = []
    with engine.running(recorder.counts, room, block):
        for K, output in outputs:
            if warm_up:
                warm_up -= K
                if not warm_up:
                    engine.snn.end_warm_up()
                    recorder.begin()
                continue
            kept += [decoder.decode() for t in decoder.steps(output, K, block) if t in at]
    return decoder.nest([torch.stack(series) for series in zip(*kept, strict=True)])


def _samples(inputs: tuple[Any, ...], sequence: bool = False) -> int:
    """Return N of inputs [N, ...], or of frames [T, N, ...]."""
    return next(v.shape[1 if sequence else 0] for v in inputs if isinstance(v, Tensor))


def _check_readout(recipe: Recipe, readout: Readout | None, block: int) -> None:
    require(
        readout is None or readout.spiking <= recipe.readout.spiking,
        f"readout={readout!r} reads spikes, but this network has no output neurons; convert with a recipe that has "
        "this readout.",
    )
    require(
        block == 1 or not (readout or recipe.readout).spiking,
        f"readout={readout or recipe.readout!r} reads single spikes, of which block={block} leaves means; use block=1 "
        "or a readout of currents such as MeanOutput().",
    )


def _steps(at: Any) -> tuple[int, ...] | None:
    """Return whole steps; raise for what is none, which an integer would be made of without a word."""
    if at is None:
        return None
    try:
        require(not isinstance(at, str), "")
        values = (at,) if whole(at) is not None else tuple(at)
        require(not any(isinstance(t, bool) for t in values), "")
        return tuple(operator.index(t) for t in values)
    except (TypeError, ValueError):
        raise ValueError(f"at={at!r}: name whole steps such as (4, 8, 16).") from None


def times(at: Iterable[int] | None, T: int, block: int = 1) -> tuple[int, ...]:
    """Return the steps at which outputs are decoded, in order; by default all, or all ends of blocks."""
    steps = tuple(range(block, T + 1, block)) if at is None else tuple(sorted(set(at)))
    require(
        bool(steps) and steps[0] >= 1 and steps[-1] <= T and all(t % block == 0 for t in steps),
        f"at={list(steps)}: name steps from 1 to T={T} at which the output is decoded"
        + (f", multiples of block={block}." if block > 1 else "."),
    )
    return steps
