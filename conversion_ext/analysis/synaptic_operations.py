"""Count what a spiking network does on event-driven hardware, beside what its ANN does."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext import graph
from conversion_ext.analysis.operations import LayerCount, OperationCount
from conversion_ext.capture.preparation import prepare
from conversion_ext.data.sequences import Layout
from conversion_ext.errors import CalibrationError, require
from conversion_ext.graph.layers import WEIGHTS
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.network.table import macs_of_product
from conversion_ext.nn.channel_scale import ChannelScale
from conversion_ext.nn.matrix_product import MatrixProduct
from conversion_ext.operators.base import operator_of
from conversion_ext.operators.movement import mixed
from conversion_ext.operators.synapse import Synapse
from conversion_ext.simulation.run import Runner
from conversion_ext.simulation.samples import batches_of, require_network
from conversion_ext.types import SPIKES, Family

__all__ = ["synops"]


def synops(
    snn: SpikingNetwork,
    data: Any,
    T: int | None = None,
    *,
    ann: nn.Module | None = None,
    sequence: Layout = None,
    generator: torch.Generator | None = None,
) -> OperationCount:
    """Return the operations that ``snn`` does on ``data`` in T steps, mean per sample, beside those of its ANN.

    A spike into a weight layer costs one addition per weight that is not 0 and leads to an output (fan-out, exact
    at borders and under strides); a spike of -1 or of any weight costs the same, a burst of k costs k (``events``
    counts it once).
    Inputs that are no spikes (the image, averages and sums of spikes, graded values) cost a MAC per weight; the image's
    layer runs once, since its current is constant, and at every step with a random encoder or a sequence of frames. A
    product of two values, as in attention, is done with the sums so far at every step, ``A_t B_t``, one MAC for each of
    the ANN. The ANN's MACs are those of the converted graph, or of ``ann`` where it is given, zero weights left out as
    well.

    Args:
        snn: a converted network whose weights hold the thresholds.
        data: a tensor [N, ...], a tuple of several inputs, or a re-iterable of batches; targets are not used.
        T: the number of time steps; for sequences by default their length.
        ann: a network whose MACs are to be counted, mostly the one that ``snn`` was made from.
        sequence: as for :func:`evaluate`.
        generator: makes the noise of a random encoder.

    Returns:
        An :class:`OperationCount`, per sample; ``.energy()`` prices it.

    Raises:
        ValueError: for networks converted with ``fold=False``.

    Reference: Rueckauer et al., 2017 (operation counts); Yan et al., arXiv:2409.08290 (bits of the twin).
    """
    require_network(snn)
    require(
        snn.conversion.folded, "synops() counts spikes, and unfolded ones carry thresholds; convert with fold=True."
    )
    families, runner = _families(snn), Runner(snn, T, None, {"generator": generator})
    run, samples, macs = None, 0, None
    spikes: dict[str, float] = {}
    with _seen(snn.body, list(families)) as seen, _multiplied(snn) as products:
        for batch in batches_of(snn, data, sequence=sequence):
            run, samples = runner(batch.inputs, batch.sequence, last=True), samples + len(batch)
            for key, sent in run.spikes.items():
                spikes[key] = spikes.get(key, 0.0) + float(sent.sum(dtype=torch.float64))
            macs = _ann_macs(snn, ann, batch.samples()) if ann is not None and macs is None else macs
    require(run is not None, "The data holds no batch; pass at least one.", CalibrationError)
    assert run is not None
    found = {
        key: _layer(key, module, sees, rows, seen[module], samples)
        for module, (key, sees, rows) in families.items()
        if module in seen
    }
    found |= {product.key: product.count(samples) for product in products}
    layers = tuple(found[row.key] for row in snn.conversion.table() if row.key in found)
    levels = max((site.levels for site in snn.sites().values()), default=1)
    return OperationCount(
        layers,
        {key: rate[0].numel() * snn.sites()[key].neurons for key, rate in run.firing_rate.items()},
        {key: sent / samples for key, sent in spikes.items()},
        run.total_steps,
        math.ceil(math.log2(run.at[-1] * levels + 1)),
        sum(layer.macs for layer in layers) if macs is None else macs,
    )


def _families(snn: SpikingNetwork) -> dict[nn.Module, tuple[str, Family, int]]:
    """Return {weight layer or scale: (key, what its input is, rows of one sample)} in graph order."""
    sees = {row.key: row.sees for row in snn.conversion.table()}
    families: dict[nn.Module, tuple[str, Family, int]] = {}
    for node in snn.body.graph.nodes:
        module, key = graph.module_of(snn.body, node), graph.key_of(node)
        if module is None or not (isinstance(module, ChannelScale) or isinstance(operator_of(snn.body, node), Synapse)):
            continue
        if module in families:  # tied weights, called again
            first, before, rows = families[module]
            families[module] = (first, mixed([before, sees[key]]), rows)
        else:
            families[module] = (key, sees[key], graph.info(node).shape[0])
    return families


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


@dataclass
class _Product:
    """How often a product of two values was computed, in rows of dimension 0."""

    key: str
    macs: int
    shape: torch.Size
    rows: int = 0

    def count(self, samples: int) -> LayerCount:
        """Return the counts of one sample: nothing of it is a spike."""
        times = self.rows / (samples * self.shape[0])
        return LayerCount(self.key, Family.GRADED, self.macs, 0.0, 0.0, times * self.macs, 0, self.shape.numel())


@contextmanager
def _multiplied(snn: SpikingNetwork) -> Iterator[list[_Product]]:
    """While open, count how often each product of two values is computed."""
    products: list[_Product] = []
    handles = []
    for node, module in graph.modules_called(snn.body, MatrixProduct):
        product = _Product(graph.key_of(node), macs_of_product(node), graph.info(node).shape)

        def hook(module: nn.Module, args: Any, output: Tensor, product: _Product = product) -> None:
            product.rows += len(output)

        products.append(product)
        handles.append(module.register_forward_hook(hook))
    try:
        yield products
    finally:
        for handle in handles:
            handle.remove()


def _layer(key: str, module: nn.Module, sees: Family, rows: int, seen: list[Tensor], samples: int) -> LayerCount:
    """Return the counts of one layer from what it saw, in as many rows for each sample."""
    reach = _reach(module)
    events, magnitudes = (float(reach(total).sum()) / samples for total in seen)
    dense = reach(torch.ones_like(seen[0]))
    spikes = sees in SPIKES and not isinstance(module, ChannelScale)
    weight = getattr(module, "weight", None)
    return LayerCount(
        key,
        sees,
        rows * float(dense.sum()),
        events if spikes else 0.0,
        (events if sees is Family.WEIGHTED else magnitudes) if spikes else 0.0,
        0.0 if spikes else events,
        int((weight != 0).sum()) if isinstance(weight, Tensor) else 0,
        rows * dense.numel(),
    )


def _reach(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the layer with every weight that is not 0 made 1: it maps counts of inputs to those of products."""
    if not isinstance(module, WEIGHTS):
        return lambda counts: counts  # a scale, or BatchNorm: one product per value
    ones: Any = copy.deepcopy(module).double()
    ones.weight = nn.Parameter((module.weight != 0).double(), requires_grad=False)
    ones.bias = None
    return ones.forward  # a copy holds the hooks of its original, and calling it would call them


def _ann_macs(snn: SpikingNetwork, ann: nn.Module, inputs: tuple[Any, ...]) -> float:
    """Return the MACs of one sample of ``ann``, weights baked in that hooks compute, products of two values too."""
    options = snn.record.options
    model = prepare(ann, inputs, options.skip, options.leaf)
    products = [node for node in model.graph.nodes if getattr(operator_of(model, node), "bilinear", False)]
    total = float(sum(map(macs_of_product, products)))

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal total
        total += float(_reach(module)(torch.ones_like(args[0], dtype=torch.float64)).sum())

    for module in model.modules():
        if isinstance(module, WEIGHTS):
            module.register_forward_pre_hook(hook)
    with torch.no_grad():
        model(*(v[:1] if isinstance(v, Tensor) else v for v in inputs))
    return total
