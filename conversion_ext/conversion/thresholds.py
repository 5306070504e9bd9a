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
    """Return {site: threshold} on the model's device and dtype; sites that see the same current share theirs.

    Normalizers, caps and sharing deal with the largest activation that a site can say; one spike is a fraction of it.
    """
    trained = {site.key: torch.tensor(site.threshold) for site in sites if site.threshold is not None}
    plain = [site for site in sites if site.kind is not SiteKind.SIGNED and site.key not in trained]
    thresholds = dict(trained)
    for m in sorted({recipe.copies_of(site) for site in plain}):  # one for all, but where copies are for some
        levels = None if T is None else round(T * recipe.neuron.levels) * m
        found = recipe.normalizer.thresholds(model, plain, stats, levels)
        thresholds |= {site.key: found[site.key] for site in plain if recipe.copies_of(site) == m}
    for site in sites:
        if site.kind is SiteKind.SIGNED:
            if site.key not in stats:
                raise CalibrationError(f"{site.key} sends signed spikes, whose threshold needs calibration data.")
            largest = stats[site.key].maximum.max()
            thresholds[site.key] = torch.where(largest > 0, recipe.signed_encoder.headroom * largest, 1.0)
    by_source: dict[Any, list[str]] = {}
    for node in model.graph.nodes:
        if graph.key_of(node) in thresholds.keys() - trained.keys():
            by_source.setdefault(node.args[0], []).append(graph.key_of(node))
    caps = {site.key: site.cap for site in sites}
    for keys in by_source.values():
        shared = torch.stack(torch.broadcast_tensors(*[thresholds[key] for key in keys])).amax(0)
        for key in keys if len(keys) > 1 else ():
            cap = caps[key]
            thresholds[key] = shared if cap is None else shared.clamp(max=cap)
    for site in sites:
        if site.kind is not SiteKind.SIGNED:
            thresholds[site.key] = thresholds[site.key] / recipe.neuron_of(site).levels
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return {site.key: thresholds[site.key].to(like.device, like.dtype) for site in sites}
