"""Count what a spiking network does on event-driven hardware, beside what its ANN does."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext import graph
from conversion_ext.capture import capture
from conversion_ext.energy import Energy, EnergyModel, FortyFiveNanometres
from conversion_ext.errors import require
from conversion_ext.nn.channel_scale import ChannelScale
from conversion_ext.nn.root import Root
from conversion_ext.operators.base import operator_of
from conversion_ext.operators.movement import mixed
from conversion_ext.operators.synapse import Synapse
from conversion_ext.simulate import simulate
from conversion_ext.types import Family

__all__ = ["LayerCount", "OperationCount", "synops"]

SPIKES = (Family.BINARY, Family.SIGNED, Family.MULTI_LEVEL)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
NOT_COUNTED = (
    "pooling, sums of tensors, softmax and graded functions",
    "biases and constant currents, which a neuron adds in its update",
    "making the input's spikes, routing, idle hardware, and memory unless the energy model says so",
)
ESTIMATE = "This is an estimate from counted operations and published constants; nothing was measured on hardware."


@dataclass(frozen=True)
class LayerCount:
    """What one weight layer (or scale) does for one sample in T steps; weights that are 0 do nothing.

    ``sees``: the family of its input; ``macs``: of the ANN, once; ``events``: input spikes times the outputs each
    reaches, borders and strides taken exactly; ``synops``: the same with a burst of k counted k times; ``analog_macs``:
    multiplications with inputs that are no spikes and not 0, once where the input does not depend on time;
    ``weights``: how many are not 0; ``outputs``: how many values it computes.
    """

    key: str
    sees: Family
    macs: float
    events: float
    synops: float
    analog_macs: float
    weights: int
    outputs: int


@dataclass(frozen=True)
class OperationCount:
    """Operations of one sample (mean over those given) in T steps; ``str()`` is a report.

    ``layers``: one per weight layer, in graph order; ``neurons``: {site: number of neurons}; ``spikes``: {site: spikes}
    (signed and multi-level ones by magnitude); ``bits``: of the activations of the twin, an ANN that can say as much as
    T steps; ``macs``: of the ANN; ``not_counted``: what the numbers leave out.
    """

    layers: tuple[LayerCount, ...]
    neurons: Mapping[str, int]
    spikes: Mapping[str, float]
    T: int
    bits: int
    macs: float
    not_counted: tuple[str, ...] = NOT_COUNTED

    @property
    def synops(self) -> float:
        """Synaptic operations, one addition of a weight each; a burst of k spikes counts k."""
        return sum(layer.synops for layer in self.layers)

    @property
    def events(self) -> float:
        """Synaptic events: as ``synops``, but a burst is one event that carries a number."""
        return sum(layer.events for layer in self.layers)

    @property
    def analog_macs(self) -> float:
        """Multiplications that the spiking network still does: the image's layer, and inputs that are no spikes."""
        return sum(layer.analog_macs for layer in self.layers)

    @property
    def updates(self) -> float:
        """Neuron updates: every neuron at every step."""
        return sum(self.neurons.values()) * self.T

    def energy(self, model: EnergyModel | None = None) -> Energy:
        """Return the energy of the spiking network, its ANN and its twin; by default that of arithmetic at 45 nm."""
        return (model or FortyFiveNanometres()).energy(self)

    def __str__(self) -> str:
        rows = [("layer", "sees", "ANN MACs", "synops", "events", "analog MACs")]
        rows += [
            (r.key, str(r.sees), *(f"{v:,.0f}" for v in (r.macs, r.synops, r.events, r.analog_macs)))
            for r in self.layers
        ]
        rows += [("sum", "", *(f"{v:,.0f}" for v in (self.macs, self.synops, self.events, self.analog_macs)))]
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        spikes = sum(self.spikes.values())
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [
            f"Per sample in {self.T} steps: {spikes:,.0f} spikes, {self.updates:,.0f} updates of neurons.",
            str(self.energy()),
            f"Not counted: {'; '.join(self.not_counted)}.",
            ESTIMATE,
        ]
        return "\n".join(lines)


def synops(
    snn: Root, x: Any, T: int, *, ann: nn.Module | None = None, generator: torch.Generator | None = None
) -> OperationCount:
    """Return the operations that ``snn`` does on x [N, ...] in T steps, mean per sample, beside those of its ANN.

    A spike into a weight layer costs one addition per weight that is not 0 and leads to an output (fan-out, exact
    at borders and under strides); a spike of -1 costs the same, a burst of k costs k (``events`` counts it once).
    Inputs that are no spikes (the image, averages and sums of spikes, graded values) cost a MAC per weight; the image's
    layer runs once, since its current is constant, and at every step with a random encoder. The ANN's MACs are those of
    the converted graph, or of ``ann`` where it is given, zero weights left out as well.

    Reference: Rueckauer et al., 2017 (operation counts); Yan et al., arXiv:2409.08290 (bits of the twin).
    """
    require(
        isinstance(snn, Root), f"snn is a {type(snn).__name__}; pass what conversion_ext.convert returned.", TypeError
    )
    require(
        snn.conversion.folded, "synops() counts spikes, and unfolded ones carry thresholds; convert with fold=True."
    )
    families = _families(snn)
    with _seen(snn.body, list(families)) as seen:
        found = simulate(snn, x, T, at=(T,), generator=generator)
    samples = len(x[0] if isinstance(x, tuple) else x)
    layers = tuple(
        _layer(key, module, sees, seen[module], samples) for module, (key, sees) in families.items() if module in seen
    )
    levels = max(snn.conversion.recipe.neuron.levels, 1)
    return OperationCount(
        layers,
        {key: rate[0].numel() for key, rate in found.firing_rate.items()},
        {key: float(spikes.sum(dtype=torch.float64)) / samples for key, spikes in found.spikes.items()},
        found.total_steps,
        math.ceil(math.log2(T * levels + 1)),
        sum(layer.macs for layer in layers) if ann is None else _ann_macs(ann, x),
    )


def _families(snn: Root) -> dict[nn.Module, tuple[str, Family]]:
    """Return {weight layer or scale: (key, what its input is)} in graph order."""
    sees = {row.key: row.sees for row in snn.conversion.table()}
    found: dict[nn.Module, tuple[str, Family]] = {}
    for node in snn.body.graph.nodes:
        module, key = graph.module_of(snn.body, node), graph.key_of(node)
        if module is None or not (isinstance(module, ChannelScale) or isinstance(operator_of(snn.body, node), Synapse)):
            continue
        if module in found:  # tied weights, called again
            found[module] = (found[module][0], mixed([found[module][1], sees[key]]))
        else:
            found[module] = (key, sees[key])
    return found


@contextmanager
def _seen(model: nn.Module, modules: list[nn.Module]) -> Iterator[dict[nn.Module, list[Tensor]]]:
    """While open, sum up [events, magnitudes] of the inputs of ``modules`` over all rows, [2, 1, ...]."""
    seen: dict[nn.Module, list[Tensor]] = {}

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].detach()
        now = [x.ne(0).sum(0, keepdim=True).double(), x.abs().sum(0, keepdim=True, dtype=torch.float64)]
        seen[module] = [a + b for a, b in zip(seen[module], now, strict=True)] if module in seen else now

    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _layer(key: str, module: nn.Module, sees: Family, seen: list[Tensor], samples: int) -> LayerCount:
    """Return the counts of one layer from what it saw."""
    reach = _reach(module)
    events, magnitudes = (float(reach(total).sum()) / samples for total in seen)
    dense = reach(torch.ones_like(seen[0]))
    spikes = sees in SPIKES and not isinstance(module, ChannelScale)
    weight = getattr(module, "weight", None)
    return LayerCount(
        key,
        sees,
        float(dense.sum()),
        events if spikes else 0.0,
        magnitudes if spikes else 0.0,
        0.0 if spikes else events,
        int((weight != 0).sum()) if isinstance(weight, Tensor) else 0,
        dense.numel(),
    )


def _reach(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the layer with every weight that is not 0 made 1: it maps counts of inputs to those of products."""
    if not isinstance(module, LAYERS):
        return lambda counts: counts  # a scale, or BatchNorm: one product per value
    ones: Any = copy.deepcopy(module).double()
    ones.weight = nn.Parameter((module.weight != 0).double(), requires_grad=False)
    ones.bias = None
    return ones.forward  # a copy holds the hooks of its original, and calling it would call them


def _ann_macs(ann: nn.Module, x: Any) -> float:
    """Return the MACs of one sample of ``ann``, its pruned and parametrized weights baked in."""
    inputs = x if isinstance(x, tuple) else (x,)
    model = capture(ann, inputs=len(inputs))
    total = 0.0

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal total
        total += float(_reach(module)(torch.ones_like(args[0][:1], dtype=torch.float64)).sum())

    for module in model.modules():
        if isinstance(module, LAYERS):
            module.register_forward_pre_hook(hook)
    with torch.no_grad():
        model(*(v[:1] if isinstance(v, Tensor) else v for v in inputs))
    return total
