"""Where a spiking network loses what its ANN computes: the error of every site in four parts."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext.conversion.observation import example_of, prepared_for
from conversion_ext.data.inputs import tensors_of
from conversion_ext.data.sequences import Layout
from conversion_ext.errors import require
from conversion_ext.network.depths import depths
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.network.state import reset
from conversion_ext.neurons import SignedEncoder
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.simulation.samples import Samples, require_network, require_steps
from conversion_ext.tables import Report, Sheet
from conversion_ext.tuners.base import SteppingTuner
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


@dataclass(frozen=True, repr=False)
class Decomposition(Report):
    """The errors of all sites at T steps, in graph order; prints as an aligned text table."""

    T: int
    sites: tuple[SiteErrors, ...]

    def sheet(self) -> Sheet:
        """Return one row per site."""
        names = ("clipping", "quantization", "inherited", "unevenness", "total")
        rows = [
            (site.key, str(site.depth), *(f"{getattr(site, f'{name}_error'):.4f}" for name in names))
            for site in self.sites
        ]
        return Sheet(("site", "depth", *names), rows)


def decompose(
    snn: SpikingNetwork, data: Any, T: int, *, ann: nn.Module | None = None, sequence: Layout = None
) -> Decomposition:
    """Return what each site of ``snn`` loses against ``ann`` in T steps of constant current, and by what.

    With a the ANN's activation and z its input, x the mean of what the site is really given in T steps, and ``rate(.)``
    its output (in ANN units) for T steps of constant current, the error ``output - a`` is the sum of

    - clipping: ``clip(a) - a``, to the most that the site can emit;
    - quantization: ``rate(z) - clip(a)``, what spikes round (and what a tuner's bias adds);
    - inherited: ``rate(x) - rate(z)``, the errors of the layers before, and weights that a tuner has changed;
    - unevenness: ``output - rate(x)``, because spikes did not come as evenly as a constant current.

    The ANN is read as the conversion read it. Blocks are those of the recipe. Every frame of a sequence is a sample.

    Args:
        snn: a converted network.
        data: a tensor [N, ...] or a re-iterable of batches; targets are not used.
        T: the number of time steps.
        ann: the network that ``snn`` was made from.
        sequence: as for :func:`evaluate`.

    Returns:
        A :class:`Decomposition`: the root mean squares of the four parts and of their sum, for every site.

    Raises:
        ValueError: for networks that do not run on a constant current, whose sites a tuner steps, or that are not made
            of ``ann``.

    Reference: Bu et al., ICLR 2022 (the parts); the inherited error and errors measured per layer are ours.
    """
    recipe = _checked(snn, T)
    require(ann is not None, "decompose() compares with the ANN: pass ann=, the network that was converted.", TypeError)
    assert ann is not None
    options = snn.record.options
    samples = Samples(snn, data, sequence)
    example = example_of(ann, samples, None, Samples.call)
    prepared = prepared_for(recipe, ann, example, replace(options, graded=True))
    ours, theirs = set(snn.sites()), {site.key for site in prepared.sites}
    require(
        ours == theirs,
        f"snn and ann differ in the sites {sorted(ours ^ theirs)}; pass the network that was converted.",
    )
    body = copy.deepcopy(snn).body
    places, sites = depths(body), list[SiteErrors]()
    for stop in walk(Task(prepared.model, body, samples, tensors_of, T, recipe.block_of(T), progress=False)):
        if isinstance(stop, SiteStop):
            sites.append(SiteErrors(stop.site.key, places[stop.site.key], *_errors(stop)))
    return Decomposition(T, tuple(sites))


def _checked(snn: SpikingNetwork, T: int) -> Recipe:
    """Return the recipe of ``snn``; raise where its errors are not those of T plain steps of constant current."""
    require_network(snn)
    require_steps(T)
    recipe = snn.conversion.recipe
    require(recipe.encoder.constant, f"{recipe.encoder} is random or changes; errors are those of a constant current.")
    pacing = [tuner for tuner in recipe.tuners if isinstance(tuner, SteppingTuner)]
    require(not pacing, f"{pacing} changes how sites are stepped; convert without it to see the errors of steps.")
    return recipe


@torch.no_grad()
def _errors(stop: SiteStop) -> list[float]:
    """Return the four parts of the error of a site and the whole, relative to the ANN's activation."""
    (squares,) = stop.exact_sum(lambda part: (_squares(stop, part),))
    return (squares[1:] / squares[0]).sqrt().tolist()


def _squares(stop: SiteStop, part: int) -> Tensor:
    """Return the sums of squares of the ANN's activation, the four parts of the error and the whole error, [6]."""
    site, a = stop.site, stop.target(part)
    signed = isinstance(site.spec, SignedEncoder)  # it encodes what a function before it computes
    amplitude = site.amplitude(a.dim())
    # A folded site takes and emits units of lambda.
    scale, worth = (1, 1) if site.scaled else (site.view(a.dim()), amplitude)
    stages = [
        a,
        torch.clamp(a, amplitude * site.spec.lowest, amplitude * site.levels),
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
