"""From a trained network to a spiking one: the stages in order, top to bottom."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext import graph
from conversion_ext.backends import get_backend
from conversion_ext.calibration.calibration import Calibration
from conversion_ext.calibration.statistics import ActivationStats
from conversion_ext.capture.environment import in_plain_modes
from conversion_ext.capture.preparation import Prepared, silence_of
from conversion_ext.capture.private_copy import unwrapped
from conversion_ext.conversion.assembly import assemble
from conversion_ext.conversion.budget import FirstSamples, Plan, Progress, check_budget, first_samples
from conversion_ext.conversion.checks import check_network, check_options
from conversion_ext.conversion.folding import fold as fold_units
from conversion_ext.conversion.memory_format import channels_last
from conversion_ext.conversion.observation import observe, read
from conversion_ext.conversion.sums import add_up
from conversion_ext.conversion.thresholds import thresholds_of
from conversion_ext.data.batches import Forward, batches, call_inputs
from conversion_ext.data.distributed import rank
from conversion_ext.data.inputs import device_of, tensors_of
from conversion_ext.data.progress import logger
from conversion_ext.data.sequences import Layout, sequence_layout
from conversion_ext.errors import CalibrationError, UnsupportedError, require, warn
from conversion_ext.network.clocks import set_clocks
from conversion_ext.network.record import Options, Record, installed_versions
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.network.state import reset
from conversion_ext.normalizers import Normalizer
from conversion_ext.readouts.mean_output import MeanOutput
from conversion_ext.recipes import resolve_recipe
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.tuners.base import SteppingTuner, Tuner
from conversion_ext.tuners.walk import OutputStop, Task, walk

__all__ = ["convert"]


@in_plain_modes
def convert(
    ann: nn.Module,
    calibration: Any = None,
    *,
    recipe: str | Recipe = "default",
    T: int | None = None,
    backend: str | None = None,
    fold: bool = True,
    graded: bool = True,
    relay: bool = False,
    example_input: Any = None,
    forward: Forward | None = None,
    skip: Sequence[str] = (),
    leaf: Sequence[Any] = (),
    sequence: Layout = None,
    generator: torch.Generator | None = None,
    budget_s: float | None = None,
    progress: bool = True,
) -> SpikingNetwork:
    """Return a spiking network that computes what ``ann`` computes, as modules of ``backend``.

    The model is never modified.

    Args:
        ann: the trained network.
        calibration: a tensor [N, ...], a re-iterable of batches as a DataLoader yields them, or the ``Calibration``
            made of them; under torch.distributed each process gives its own part, ``[]`` for none.
        recipe: a name from ``conversion_ext.recipes.names()`` or a :class:`Recipe`.
        T: number of time steps to optimise for, None for none in particular.
        backend: "spikingjelly", "snntorch" or "reference"; by default the first that is installed.
        fold: put thresholds into weights, so that spikes are {0, 1}; False keeps explicit scales.
        graded: False refuses operations whose output is not spikes.
        relay: add spiking neurons where a weight layer would receive sums or averages of spikes.
        example_input: inputs of one call, for recipes without calibration data.
        forward: ``forward(model, batch)`` calls a network of several inputs.
        skip: paths of modules that stay analog.
        leaf: types or paths of modules that are not traced into.
        sequence: batches hold frames, [T, N, ...] for True or "time_first", [N, T, ...] for "batch_first"; thresholds
            then come from all frames, and later verbs read their data in the same way. By default a network that takes
            single frames reads batches with one dimension more in this way, and a warning tells so.
        generator: seeds what is random in the network (a spiking softmax), by default with 0.
        budget_s: about how many seconds the conversion may take. Where that is less than it needs for all of
            ``calibration``, it reads the first batches only, at least one, or the first samples of a tensor;
            ``.conversion.notes`` then tells so. What does not grow with the samples comes on top: tracing and the
            search for thresholds, a few seconds, and the training steps of ``BlockReconstruction``.
        progress: show a bar with the time that remains.

    Returns:
        A module of the framework; ``.body`` is its graph, ``.conversion`` tells what was done.

    Raises:
        UnsupportedError: with every obstacle found.
        CalibrationError: for data that cannot be used.
        ValueError: for arguments that do not fit each other, such as a recipe that needs T without one.
    """
    ann = unwrapped(ann)
    check_network(ann)
    check_options(T, forward, generator, fold=fold, graded=graded, relay=relay, progress=progress)
    check_budget(budget_s)
    name, recipe, calibrated = _timed(recipe, T)
    require(fold or recipe.pool != "sum", 'Recipe(pool="sum") puts divisors into weights; convert with fold=True.')
    framework = get_backend(backend)
    root = framework.root(SpikingNetwork)
    options = Options(tuple(skip), tuple(leaf), graded, relay, forward, sequence_layout(sequence))
    data = _data(calibration, recipe.normalizer, calibrated, example_input)
    prepared, data, forward, options = read(ann, recipe, data, example_input, options)
    model, sites, notes = prepared.model, prepared.sites, prepared.notes
    if silence := silence_of(model):
        warn(silence)
        notes.append(silence)
    recipe.check_sites(sites)
    plan = Plan(model, T, bool(calibrated))
    if budget_s is not None and data is not None and not isinstance(data, Calibration):
        data = first_samples(data, model, prepared.inputs, plan, forward, budget_s)
    with Progress(progress and rank() == 0, plan.passes) as bar:
        thresholds, samples = _observed(prepared, recipe, data, forward, T, bar)
        captured = copy.deepcopy(model) if calibrated else model
        assemble(model, sites, thresholds, recipe, framework, generator or torch.Generator().manual_seed(0))
        set_clocks(model, T)
        if calibrated:
            assert T is not None
            assert data is not None
            assert not isinstance(data, Calibration)
            block, shown = recipe.block_of(T), progress and rank() == 0
            device = device_of(model)
            task = Task(captured, model, data, lambda b: tensors_of(call_inputs(b, forward, device)), T, block, shown)
            weights = _tune(task, calibrated, plan, bar)
            if weights and _weighs(recipe, options):
                recipe = replace(recipe, readout=MeanOutput(weights=weights))
    if isinstance(data, FirstSamples) and data.cut:
        notes.append(f"budget_s={budget_s}: {samples} samples were read, the rest of the calibration data was not.")
    notes += fold_units(model, prepared.inputs) if fold else []
    if recipe.pool == "sum":
        add_up(model)
    for tuner in recipe.tuners:
        if isinstance(tuner, SteppingTuner):
            tuner.install(model)
    channels_last(model)
    record = Record(
        name, T, framework.name, fold, samples, tuple(site.key for site in sites), tuple(notes),
        installed_versions("conversion-ext", "torch", "spikingjelly", "snntorch"), recipe,
        options=options,
    )  # fmt: skip
    snn = root(model, record).eval()
    reset(snn)
    logger.info("converted: %r", snn.conversion)
    return snn  # type: ignore[return-value]


def _observed(
    prepared: Prepared, recipe: Recipe, data: Any, forward: Forward | None, T: int | None, bar: Progress
) -> tuple[dict[str, Tensor], int]:
    """Return the threshold of every site and the number of samples seen; what was recorded of them is freed."""
    seen = observe(prepared, recipe.normalizer, data, forward, bar)
    _require_positive(prepared.outputs, seen.stats)
    thresholds = thresholds_of(prepared.model, prepared.sites, seen.stats, recipe, T)
    # One for all output neurons, or their counts would not compare.
    thresholds |= {key: thresholds[key].amax() for key in prepared.outputs}
    for key in prepared.outputs:
        if doubt := recipe.readout.doubt(_first_spikes(prepared, seen.stats.get(key), thresholds[key], recipe)):
            warn(doubt)
            prepared.notes.append(doubt)
    return thresholds, seen.samples


def _require_positive(outputs: Sequence[str], stats: Mapping[str, Any]) -> None:
    """Raise where an output never is positive: output neurons would not spike, and their counts would all be 0."""
    largest = [stats[key].maximum.max() for key in outputs if hasattr(stats.get(key), "maximum")]
    require(
        not largest or any(bool(value > 0) for value in largest),
        "The output of the network never is positive on the calibration data (a LogSoftmax?), so neurons behind it do "
        "not spike and a readout of spikes has nothing to count. End the network at its logits, or take a recipe whose "
        "readout reads currents, such as MeanOutput().",
        UnsupportedError,
    )


def _first_spikes(prepared: Prepared, stats: Any, threshold: Tensor, recipe: Recipe) -> float:
    """Return how many output neurons of a sample spike at the first step of a constant current, on average."""
    if not isinstance(stats, ActivationStats):
        return 0.0
    values, counts, scale = stats.bins()
    reached = values * scale[:, None] >= float(threshold) * (1 - recipe.neuron.v_init)
    shape = graph.info(graph.output_of(prepared.model).all_input_nodes[0]).shape
    classes = shape[1] if isinstance(shape, torch.Size) and len(counts) == 1 else 1  # of a histogram of all classes
    return classes * float((counts * reached).sum()) / stats.count


def _weighs(recipe: Recipe, options: Options) -> bool:
    """Return whether the steps of the output are those of one constant input, read by their mean."""
    readout = recipe.readout
    return isinstance(readout, MeanOutput) and not readout.start and recipe.encoder.constant and not options.sequence


def _tune(task: Task, tuners: Sequence[Tuner], plan: Plan, bar: Progress) -> tuple[float, ...]:
    """Let tuners act in their order, those up to one of the whole network in one walk; return weights of steps."""
    weights: tuple[float, ...] = ()
    together: list[Tuner] = []
    for tuner in tuners:
        together.append(tuner)
        if tuner.changes_network:
            weights = _walked(task, together, plan, bar)
            tuner.tune_network(task)
            together = []
    return _walked(task, together, plan, bar) if together else weights


def _walked(task: Task, tuners: Sequence[Tuner], plan: Plan, bar: Progress) -> tuple[float, ...]:
    """Let tuners see every layer and site in one walk; return the weights of steps in the output."""
    weights: tuple[float, ...] = ()
    with torch.no_grad():
        for stop in walk(task):
            for tuner in tuners:
                tuner.tune(stop)
            weights = stop.weights if isinstance(stop, OutputStop) else ()
            bar.add(plan.of(stop))
    bar.reach(plan.passes)
    return weights


def _timed(recipe: str | Recipe, T: int | None) -> tuple[str, Recipe, list[Tuner]]:
    """Return the name of a recipe, the recipe for T steps, and its tuners that read data; check that T fits."""
    name, recipe = resolve_recipe(recipe, T)
    recipe = recipe.timed(T)
    calibrated = [tuner for tuner in recipe.tuners if tuner.needs_calibration]
    asks = [*([recipe.normalizer] if recipe.normalizer.needs_T else []), *calibrated]
    require(T is not None or not asks, f"{asks} need the number of time steps: pass T=.")
    if T is not None:
        recipe.block_of(T)
    return name, recipe, calibrated


def _data(calibration: Any, normalizer: Normalizer, tuners: Sequence[Tuner], example_input: Any) -> Any:
    """Return the calibration batches, a Calibration as it is, or None where the recipe uses none."""
    if isinstance(calibration, Calibration):
        require(not tuners, f"{tuners} read calibration data, and a Calibration holds statistics; pass batches.")
        return calibration
    if calibration is None:
        require(
            not (normalizer.needs_calibration or tuners),
            "This recipe needs calibration data: pass a tensor of inputs [N, ...] or a DataLoader.",
            CalibrationError,
        )
        require(
            example_input is not None,
            "Without calibration data the shapes are unknown: pass example_input=, a tensor [N, ...].",
            CalibrationError,
        )
        return None
    return batches(calibration)
