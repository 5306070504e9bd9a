"""One run of a network over T steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.readouts.base import Readout
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.simulation.decoder import Decoder
from conversion_ext.simulation.engine import Engine
from conversion_ext.simulation.inputs import encoded, means
from conversion_ext.simulation.recorder import Recorder
from conversion_ext.simulation.schedule import Schedule

__all__ = ["run", "times"]


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
) -> Any:
    """Run the engine on one batch and return the outputs decoded after the steps ``at``."""
    recipe, block, warm_up = engine.snn.conversion.recipe, plan.block, plan.warm_up
    _check_readout(recipe, readout, block)
    decoder = Decoder(readout or recipe.readout)
    N = next(v.shape[1 if sequence else 0] for v in inputs if isinstance(v, Tensor))
    chunks = engine.chunks(N, plan, time_chunk)
    if sequence:
        outputs = engine.sequence(means(lambda t, K: tuple(v[t : t + K] for v in inputs), block), chunks, block)
    elif recipe.encoder.constant:
        outputs = engine.constant(inputs, chunks, block)
    else:
        read = encoded(recipe.encoder, inputs, plan.warm_up + plan.T, generator)
        outputs = engine.sequence(means(read, block), chunks, block)
    kept: list[list[Tensor]] = []
    with engine.running():
        for K, output in outputs:
            if warm_up:
                warm_up -= K
                if not warm_up:
                    engine.snn.end_warm_up()
                    recorder.begin()
                continue
            kept += [decoder.decode() for t in decoder.steps(output, K, block) if t in at]
    return decoder.nest([torch.stack(series) for series in zip(*kept, strict=True)])


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


def times(at: Iterable[int] | None, T: int, block: int = 1) -> tuple[int, ...]:
    """Return the steps at which outputs are wanted, in order; by default all, or all ends of blocks."""
    steps = tuple(range(block, T + 1, block)) if at is None else tuple(sorted({int(t) for t in at}))
    require(
        bool(steps) and steps[0] >= 1 and steps[-1] <= T and all(t % block == 0 for t in steps),
        f"at={list(steps)}: name steps from 1 to T={T} at which the output is wanted"
        + (f", multiples of block={block}." if block > 1 else "."),
    )
    return steps
