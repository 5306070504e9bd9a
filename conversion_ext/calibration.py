"""What calibration data tells of a network: statistics of every site, collected, saved, resumed and merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from tqdm import tqdm

from conversion_ext.batches import Forward, batches, call_inputs, check_inputs
from conversion_ext.check import find_sites, prepare, resolve_recipe
from conversion_ext.distributed import all_or_none, gathered, merged, processes, rank
from conversion_ext.errors import CalibrationError, require
from conversion_ext.normalizers import Normalizer
from conversion_ext.observe import ActivationStats, Observer
from conversion_ext.recipe import Recipe
from conversion_ext.relay import insert_output_neurons, insert_relays
from conversion_ext.types import Site, SiteKind

__all__ = ["Calibration", "Traced", "calibrate", "example_of", "observe", "trace"]


class Calibration:
    """Statistics of every site, which ``convert`` takes in the place of data.

    ``stats``: {site key: statistics}; ``samples``: how many were seen; ``example``: inputs of one call, two samples.
    Equal activations give bit-identical thresholds, whatever the order and the number of parts in which they came.
    """

    def __init__(self, stats: Mapping[str, Any], samples: int = 0, example: tuple[Any, ...] = ()) -> None:
        self.stats = dict(stats)
        self.samples = samples
        self.example = tuple(v[:2].cpu() if isinstance(v, Tensor) and v.dim() else v for v in example)

    def merge(self, other: Calibration) -> None:
        """Add what ``other`` saw of the same network."""
        require(
            self.stats.keys() == other.stats.keys(),
            f"The calibrations are of networks with other sites ({len(self.stats)} against {len(other.stats)}); merge "
            "those of one model and recipe.",
        )
        for key, stats in self.stats.items():
            stats.merge(other.stats[key])
        self.samples += other.samples

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors, numbers and strings, for ``torch.save``."""
        other = sorted({type(s).__name__ for s in self.stats.values() if not isinstance(s, ActivationStats)})
        require(not other, f"Statistics of the kind {', '.join(other)} cannot be saved; use another normalizer.")
        sites = {key: stats.state_dict() for key, stats in self.stats.items()}
        return {"samples": self.samples, "example": list(self.example), "sites": sites}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Calibration:
        """Return the calibration that ``state_dict`` described."""
        stats = {key: ActivationStats.from_state_dict(site) for key, site in state["sites"].items()}
        return cls(stats, state["samples"], tuple(state["example"]))

    def check(self, observer: Observer) -> None:
        """Raise CalibrationError unless these are the statistics that ``observer`` would collect."""
        for key, wanted in observer.stats.items():
            found: Any = self.stats.get(key)
            require(
                type(found) is type(wanted) and found.granularity == wanted.granularity,
                f"The calibration does not hold of {key} what this recipe needs; calibrate with the same model and "
                "recipe.",
                CalibrationError,
            )


@dataclass(frozen=True)
class Traced:
    """A network ready for calibration: graph, sites, inputs of one call, keys of output neurons, what is to be said."""

    model: GraphModule
    sites: list[Site]
    inputs: tuple[Any, ...]
    outputs: list[str]
    notes: list[str]


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
    progress: bool = True,
) -> Calibration:
    """Return the statistics of ``ann`` on ``data``: the first half of ``convert``, with the same arguments.

    ``convert(ann, calibration, recipe=...)`` makes the network from them; before, they may be merged with others and
    saved: a long calibration is resumed by merging what the rest of the data gives.
    """
    _, recipe = resolve_recipe(recipe)
    data = batches(data)
    inputs = example_of(ann, data, example_input, forward)
    return observe(trace(ann, inputs, recipe, graded, relay, skip, leaf), recipe.normalizer, data, forward, progress)


def example_of(ann: nn.Module, data: Any, example_input: Any, forward: Forward | None) -> tuple[Any, ...]:
    """Return checked inputs of one call; a process without data takes those of another."""
    if example_input is not None:
        own = example_input if isinstance(example_input, tuple) else (example_input,)
    elif isinstance(data, Calibration):
        own = data.example
    else:
        first = next(iter(data), None)
        own = () if first is None else call_inputs(first, forward)
    shared = gathered(Calibration({}, 0, own).example) if processes() > 1 else []
    found = own or next((example for example in shared if example), ())
    require(bool(found), "The calibration data holds no batch; pass at least one.", CalibrationError)
    if found is not own or isinstance(data, Calibration):
        device = next((p.device for p in ann.parameters()), torch.device("cpu"))
        found = tuple(v.to(device) if isinstance(v, Tensor) else v for v in found)
    check_inputs(found, ann, "The example input" if example_input is not None else "The first calibration batch")
    return found


def trace(
    ann: nn.Module,
    inputs: tuple[Any, ...],
    recipe: Recipe,
    graded: bool,
    relay: bool,
    skip: Sequence[str],
    leaf: Sequence[Any],
) -> Traced:
    """Return the graph of ``ann`` with all sites that it will have; raise UnsupportedError with every obstacle."""
    model = prepare(ann, inputs, skip, leaf, graded, recipe.demands)
    outputs = insert_output_neurons(model) if recipe.readout.spiking else []
    notes = [f"A relay was added: {key}." for key in insert_relays(model)] if relay or recipe.relay else []
    return Traced(model, find_sites(model), inputs, outputs, notes)


def observe(traced: Traced, normalizer: Normalizer, data: Any, forward: Forward | None, progress: bool) -> Calibration:
    """Return the statistics of ``data``, which each of several processes has a part of, or ``data`` if that is they."""
    sites = [site for site in traced.sites if site.threshold is None]
    signed = any(site.kind is not SiteKind.RELU for site in sites)
    if data is None or not sites or not (normalizer.needs_calibration or signed):
        return Calibration({}, 0, traced.inputs)
    observer = Observer(traced.model, sites, normalizer.granularity, normalizer.statistics)
    if isinstance(data, Calibration):
        data.check(observer)
        return data
    require(
        processes() == 1 or all(hasattr(stats, "merge") for stats in observer.stats.values()),
        f"{normalizer} depends on the order of its batches and cannot be shared out to {processes()} processes; "
        "calibrate it in one.",
    )
    samples = all_or_none(lambda: _run(traced.model, observer, normalizer.runs, data, forward, progress))
    total = sum(gathered(samples))
    require(total > 0, "The calibration data holds no batch; pass at least one.", CalibrationError)
    return Calibration({key: merged(stats) for key, stats in observer.stats.items()}, total, traced.inputs)


@torch.inference_mode()
def _run(model: GraphModule, observer: Observer, runs: int, data: Any, forward: Forward | None, progress: bool) -> int:
    """Show the data to the observer and return the number of samples."""
    samples = 0
    with observer:
        for run in range(runs):
            for index, batch in enumerate(tqdm(data, desc="calibration", disable=not progress or rank() > 0)):
                inputs = call_inputs(batch, forward)
                check_inputs(inputs, model, f"Calibration batch {index}")
                model(*inputs)
                samples += len(inputs[0]) if run == 0 else 0
    return samples
