"""The threshold of every site, from its statistics and the recipe."""

from __future__ import annotations

__all__ = ["thresholds_of"]

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from conversion_ext import graph
from conversion_ext.errors import CalibrationError
from conversion_ext.operators.sites import Site, SiteKind
from conversion_ext.recipes.recipe import Recipe


def thresholds_of(
    model: GraphModule, sites: Sequence[Site], stats: Mapping[str, Any], recipe: Recipe, T: int | None
) -> dict[str, Tensor]:
    """Return {site: threshold of one spike} on the model's device and dtype.

    The steps: thresholds that activations were trained with, those of the normalizer, those of signed sites; then
    sites that see the same current share theirs, within their caps. All these are of the largest activation that a
    site can express; one spike is a fraction of it.
    """
    trained = {site.key: torch.tensor(site.threshold) for site in sites if site.threshold is not None}
    free = [site for site in sites if site.key not in trained]
    largest = trained | _normalized(model, free, stats, recipe, T) | _with_headroom(free, stats, recipe)
    largest = {key: value.cpu() for key, value in largest.items()}  # caps are numbers there, statistics on the device
    _share(model, sites, largest, set(trained))
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return {site.key: _per_spike(site, largest[site.key], recipe).to(like.device, like.dtype) for site in sites}


def _normalized(
    model: GraphModule, sites: Sequence[Site], stats: Mapping[str, Any], recipe: Recipe, T: int | None
) -> dict[str, Tensor]:
    """Return what the normalizer chooses: for ReLU sites, and for signed ones whose encoder leaves it the choice."""
    signed = [site for site in sites if site.kind is SiteKind.SIGNED and recipe.signed_encoder.headroom is None]
    plain = [site for site in sites if site.kind is not SiteKind.SIGNED]
    chosen: dict[str, Tensor] = {}
    for m in sorted({recipe.copies_of(site) for site in plain}):  # one number for all, but where copies are for some
        levels = None if T is None else round(T * recipe.neuron.levels) * m
        normalized = recipe.normalizer.thresholds(model, plain, stats, levels)
        chosen |= {site.key: normalized[site.key] for site in plain if recipe.copies_of(site) == m}
    levels = None if T is None else round(T * recipe.signed_encoder.levels)
    return chosen | (recipe.normalizer.thresholds(model, signed, stats, levels) if signed else {})


def _with_headroom(sites: Sequence[Site], stats: Mapping[str, Any], recipe: Recipe) -> dict[str, Tensor]:
    """Return thresholds of signed sites that leave room above their largest value."""
    headroom = recipe.signed_encoder.headroom
    chosen: dict[str, Tensor] = {}
    for site in sites:
        if site.kind is SiteKind.SIGNED and headroom is not None:
            if site.key not in stats:
                raise CalibrationError(f"{site.key} sends signed spikes, whose threshold needs calibration data.")
            maximum = stats[site.key].maximum.max()
            chosen[site.key] = torch.where(maximum > 0, headroom * maximum, 1.0)
    return chosen


def _share(model: GraphModule, sites: Sequence[Site], thresholds: dict[str, Tensor], trained: set[str]) -> None:
    """Give sites that see the same current the largest of their thresholds, in place, each within its cap."""
    by_source: dict[Any, list[str]] = {}
    for node in model.graph.nodes:
        if graph.key_of(node) in thresholds.keys() - trained:
            by_source.setdefault(node.args[0], []).append(graph.key_of(node))
    caps = {site.key: site.cap for site in sites}
    for keys in by_source.values():
        if len(keys) > 1:
            shared = torch.stack(torch.broadcast_tensors(*[thresholds[key] for key in keys])).amax(0)
            thresholds.update({key: shared if caps[key] is None else shared.clamp(max=caps[key]) for key in keys})


def _per_spike(site: Site, largest: Tensor, recipe: Recipe) -> Tensor:
    """Return the threshold of one spike of a site whose largest activation is ``largest``."""
    neuron = recipe.signed_encoder if site.kind is SiteKind.SIGNED else recipe.neuron_of(site)
    return largest / neuron.levels
