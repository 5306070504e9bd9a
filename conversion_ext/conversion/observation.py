"""The first half of a conversion: show calibration data to the sites of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from conversion_ext.calibration.calibration import Calibration
from conversion_ext.calibration.observer import Observer
from conversion_ext.capture.environment import in_plain_modes
from conversion_ext.capture.preparation import Prepared, trace
from conversion_ext.capture.private_copy import unwrapped
from conversion_ext.conversion.budget import OBSERVING, Progress
from conversion_ext.conversion.memory_format import channels_last
from conversion_ext.data.batches import Forward, batches, call_inputs, check_inputs
from conversion_ext.data.distributed import all_or_none, gathered, merged, processes, rank
from conversion_ext.data.inputs import device_of, streamed, tensors_of
from conversion_ext.data.sequences import FramesAsSamples, Layout, layout_of, sequence_layout
from conversion_ext.errors import CalibrationError, UnsupportedError, require
from conversion_ext.network.record import Options
from conversion_ext.normalizers import Normalizer
from conversion_ext.operators.sites import SiteKind
from conversion_ext.recipes import resolve_recipe
from conversion_ext.recipes.recipe import Recipe

__all__ = ["calibrate", "example_of", "observe", "prepared_for", "read"]


@in_plain_modes
def calibrate(
    ann: nn.Module,
    data: Any,
    *,
    recipe: str | Recipe = "default",
    graded: bool = True,
    relay: bool = False,
    example_input: Any = None,
    forward: Forward | None = None,
    skip: Sequence[str] = (),
    leaf: Sequence[Any] = (),
    sequence: Layout = None,
    progress: bool = True,
) -> Calibration:
    """Return the statistics of ``ann`` on ``data``: the first half of ``convert``.

    ``convert(ann, calibration, recipe=...)`` makes the network from them; before, they may be merged with others and
    saved: a long calibration is resumed by merging what the rest of the data gives.

    Args:
        ann: the trained network.
        data: a tensor [N, ...] or a re-iterable of batches.
        recipe: a name or a :class:`Recipe`; its normalizer tells which statistics are taken.
        graded: False refuses operations whose output is not spikes.
        relay: add spiking neurons where a weight layer would receive sums or averages of spikes.
        example_input: inputs of one call, by default the first batch.
        forward: ``forward(model, batch)`` calls a network of several inputs.
        skip: paths of modules that stay analog.
        leaf: types or paths of modules that are not traced into.
        sequence: batches hold frames, each of which is a sample; see :func:`convert`.
        progress: show a bar.

    Returns:
        The statistics of every site.

    Raises:
        UnsupportedError: with every obstacle to converting the network.
        CalibrationError: for data that cannot be used.
    """
    _, recipe = resolve_recipe(recipe)
    options = Options(tuple(skip), tuple(leaf), graded, relay, forward, sequence_layout(sequence))
    prepared, data, forward, options = read(unwrapped(ann), recipe, batches(data), example_input, options)
    with Progress(progress and rank() == 0, OBSERVING) as bar:
        return observe(prepared, recipe.normalizer, data, forward, bar)


def read(
    ann: nn.Module, recipe: Recipe, data: Any, example_input: Any, options: Options
) -> tuple[Prepared, Any, Forward | None, Options]:
    """Return the graph of ``ann`` with its sites, the data with every frame a sample, and how to call ``ann`` on it.

    Where nobody named a layout, and ``ann`` takes frames but not the batches, the options returned name it.
    """
    samples, forward = data, options.forward
    frames: Any = data
    batched = data is not None and not isinstance(data, Calibration)
    if options.sequence and batched:
        samples, forward = FramesAsSamples(frames, options.sequence, forward, ann), FramesAsSamples.call
    try:
        inputs = example_of(ann, samples, example_input, forward)
        return prepared_for(recipe, ann, inputs, options), samples, forward, options
    except UnsupportedError as error:
        fails = any(problem.reason.startswith("fails on an example") for problem in error.problems)
        unnamed = fails and batched and example_input is None and options.sequence is None
        layout = layout_of(frames, ann, options.forward) if unnamed else None
        if layout is None:
            raise
    return read(ann, recipe, data, example_input, replace(options, sequence=layout))


@in_plain_modes
def prepared_for(recipe: Recipe, ann: nn.Module, inputs: tuple[Any, ...], options: Options) -> Prepared:
    """Return the graph of ``ann`` with all sites that ``recipe`` gives it, laid out in memory to run it often."""
    prepared = trace(
        ann, inputs, recipe.demands, output_neurons=recipe.readout.spiking, graded=options.graded,
        relay=options.relay or recipe.relay, skip=options.skip, leaf=options.leaf,
    )  # fmt: skip
    channels_last(prepared.model)
    return prepared


def example_of(ann: nn.Module, data: Any, example_input: Any, forward: Forward | None) -> tuple[Any, ...]:
    """Return checked inputs of one call; a process without data takes those of another."""
    if example_input is not None:
        own = example_input if isinstance(example_input, tuple) else (example_input,)
    elif isinstance(data, Calibration):
        own = data.example
    else:
        first = next(iter(data), None)
        own = () if first is None else call_inputs(first, forward, device_of(ann))
    shared = gathered(Calibration({}, 0, own).example) if processes() > 1 else []
    inputs = own or next((example for example in shared if example), ())
    require(bool(inputs), "The calibration data holds no batch; pass at least one.", CalibrationError)
    if inputs is not own or isinstance(data, Calibration):
        inputs = streamed(inputs, device_of(ann))
    check_inputs(inputs, ann, "The example input" if example_input is not None else "The first calibration batch")
    return inputs


def observe(
    prepared: Prepared, normalizer: Normalizer, data: Any, forward: Forward | None, bar: Progress
) -> Calibration:
    """Return the statistics of ``data``, which each of several processes has a part of, or ``data`` if that is they."""
    sites = [site for site in prepared.sites if site.threshold is None]
    signed = any(site.kind is not SiteKind.RELU for site in sites)
    if data is None or not sites or not (normalizer.needs_calibration or signed):
        return Calibration({}, 0, prepared.inputs)
    observer = Observer(prepared.model, sites, normalizer.granularity, normalizer.statistics)
    if isinstance(data, Calibration):
        data.check(observer)
        return data
    require(
        processes() == 1 or all(hasattr(stats, "merge") for stats in observer.stats.values()),
        f"{normalizer} depends on the order of its batches and cannot be shared out to {processes()} processes; "
        "calibrate it in one.",
    )
    samples = all_or_none(lambda: _run(prepared.model, observer, normalizer.runs, data, forward, bar))
    total = sum(gathered(samples))
    require(total > 0, "The calibration data holds no batch; pass at least one.", CalibrationError)
    return Calibration({key: merged(stats) for key, stats in observer.stats.items()}, total, prepared.inputs)


@torch.inference_mode()
def _run(model: GraphModule, observer: Observer, runs: int, data: Any, forward: Forward | None, bar: Progress) -> int:
    """Show the data to the observer and return the number of samples."""
    samples, count = 0, runs * length_hint(data, 0)
    with observer:
        for run in range(runs):
            for index, batch in enumerate(data):
                inputs = call_inputs(batch, forward, device_of(model))
                check_inputs(inputs, model, f"Calibration batch {index}")
                tensors = tensors_of(inputs)
                try:
                    model.forward(*tensors)  # a call prints what fails
                except RuntimeError as error:
                    raise _misfit(index, tensors, error) from error
                samples += len(tensors[0]) if run == 0 else 0
                bar.add(OBSERVING / count if count else 0.0)
    bar.reach(OBSERVING)
    return samples


def _misfit(index: int, tensors: tuple[Tensor, ...], error: RuntimeError) -> CalibrationError:
    """Return the sentence for a batch on which the network fails though it ran on the example."""
    shapes = " and ".join(str(list(value.shape)) for value in tensors)
    why = str(error).strip().partition("\n")[0].rstrip(".")
    return CalibrationError(
        f"Calibration batch {index}, of shape {shapes}, does not fit a network that was captured on the first batch: "
        f"{why}. Give batches of one size per sample."
    )
