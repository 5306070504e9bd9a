"""Where a spiking network loses what its ANN computes: the error of every site in four parts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext.conversion.observation import example_of, traced_for
from conversion_ext.data.batches import Forward, batches, call_inputs
from conversion_ext.errors import require
from conversion_ext.network.depths import depths
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.spiking_network import Root
from conversion_ext.network.state import reset
from conversion_ext.neurons import SignedEncoder
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.tuners.base import SteppingTuner, Tuner
from conversion_ext.tuners.walk import SiteStop, Task, walk
from conversion_ext.types import Steps

__all__ = ["Decomposition", "SiteErrors", "decompose"]


@dataclass(frozen=True)
class SiteErrors:
    """The errors of one site, root mean squares relative to that of the ANN's activation; nan where that is 0.

    As tensors the four parts add up to the total, so it is at most their sum. ``depth`` counts sites from the input.
    """

    key: str
    depth: int
    clipping_error: float
    quantization_error: float
    inherited_error: float
    unevenness_error: float
    total_error: float


@dataclass(frozen=True)
class Decomposition:
    """The errors of all sites at T steps, in graph order; prints as an aligned text table."""

    T: int
    sites: tuple[SiteErrors, ...]

    def __str__(self) -> str:
        names = ("clipping", "quantization", "inherited", "unevenness", "total")
        rows: list[tuple[str, ...]] = [("site", "depth", *names)]
        for site in self.sites:
            errors = (getattr(site, f"{name}_error") for name in names)
            rows.append((site.key, str(site.depth), *(f"{error:.4f}" for error in errors)))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True)) for row in rows]
        return "\n".join(f"{row[0]:<{widths[0]}}  {line}" for row, line in zip(rows, lines, strict=True))


def decompose(
    snn: Root,
    ann: nn.Module,
    data: Any,
    T: int,
    *,
    relay: bool = False,
    forward: Forward | None = None,
    skip: Sequence[str] = (),
    leaf: Sequence[Any] = (),
) -> Decomposition:
    """Return what each site of ``snn`` loses against ``ann`` in T steps of constant current, and by what.

    With a the ANN's activation and z its input, x the mean of what the site is really given in T steps, and ``rate(.)``
    its output (in ANN units) for T steps of constant current, the error ``output - a`` is the sum of

    - clipping: ``clip(a) - a``, to what the site can say at most;
    - quantization: ``rate(z) - clip(a)``, what spikes round (and what a tuner's bias adds);
    - inherited: ``rate(x) - rate(z)``, the errors of the layers before, and weights that a tuner has changed;
    - unevenness: ``output - rate(x)``, because spikes did not come as evenly as a constant current.

    ``data`` is read as ``convert`` reads it; ``relay``, ``forward``, ``skip`` and ``leaf`` are those it was given.
    Blocks are those of the recipe. Raises ValueError for networks that do not run on a constant current, whose sites
    a tuner steps, or that are not made of ``ann``.

    The parts: Bu et al., ICLR 2022; error inherited and measured per layer: ours.
    """
    recipe = _checked(snn, T)
    block = recipe.block_of(T)
    data = batches(data, "data")
    traced = traced_for(recipe, ann, example_of(ann, data, None, forward), True, relay, skip, leaf)
    keys, found = {site.key for site in traced.sites}, set(snn.sites())
    require(
        keys == found,
        f"snn and ann differ in the sites {sorted(keys ^ found)}; pass the network that was converted, with the same "
        "relay=, skip= and leaf=.",
    )
    body = copy.deepcopy(snn).body
    look = _Look()
    walk(Task(traced.model, body, data, lambda batch: call_inputs(batch, forward), T, block, progress=False), [look])
    places = depths(body)
    return Decomposition(T, tuple(SiteErrors(key, places[key], *errors) for key, errors in look.found.items()))


def _checked(snn: Root, T: int) -> Recipe:
    """Return the recipe of ``snn``; raise where its errors are not those of T plain steps of constant current."""
    require(
        isinstance(snn, Root), f"snn is a {type(snn).__name__}; pass what conversion_ext.convert returned.", TypeError
    )
    require(isinstance(T, int) and T >= 1, f"T={T!r}: the number of time steps is an integer >= 1.")
    recipe = snn.conversion.recipe
    require(recipe.encoder.constant, f"{recipe.encoder} is random or changes; errors are those of a constant current.")
    pacing = [tuner for tuner in recipe.tuners if isinstance(tuner, SteppingTuner)]
    require(not pacing, f"{pacing} changes how sites are stepped; convert without it to see the errors of steps.")
    return recipe


@dataclass(frozen=True, kw_only=True)
class _Look(Tuner):
    """Changes nothing and notes the errors of every site."""

    found: dict[str, list[float]] = field(default_factory=dict)

    def tune_site(self, stop: SiteStop) -> None:
        (squares,) = stop.total(lambda part: (_squares(stop, part),))
        self.found[stop.site.key] = (squares[1:] / squares[0]).sqrt().tolist()


def _squares(stop: SiteStop, part: int) -> Tensor:
    """Return the sums of squares of the ANN's activation, the four parts of the error and the whole error, [6]."""
    site, a = stop.site, stop.wanted(part)
    signed = isinstance(site.spec, SignedEncoder)  # it encodes what a function before it computes
    amplitude = site.amplitude(a.dim())
    # A folded site takes and emits units of lambda.
    scale, worth = (1, 1) if site.scaled else (site.view(a.dim()), amplitude)
    stages = [
        a,
        torch.clamp(a, amplitude * site.spec.lowest, amplitude * site.spec.levels),
        worth * _rate(site, (a if signed else stop.true_input(part)) / scale, stop.T),
        worth * _rate(site, stop.mean_input(part), stop.T),
        worth * stop.emitted(part).mean(0),
    ]
    errors = [after - before for before, after in zip(stages, stages[1:], strict=False)]
    return torch.stack([value.double().square().sum() for value in (a, *errors, stages[-1] - a)])


def _rate(site: SpikingSite, x: Tensor, T: int) -> Tensor:
    """Return the mean output of a site in T steps of constant input x [N, ...]."""
    reset(site)
    emitted = site(x, Steps(1, constant=True, block=T))
    reset(site)
    return emitted
