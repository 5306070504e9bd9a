"""Features far from 0: what is constant of them goes into a bias in place of spikes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.calibration.histogram import as_channels
from conversion_ext.calibration.moments import Moments
from conversion_ext.capture.passes.base import layers
from conversion_ext.capture.tracing import capture
from conversion_ext.data.batches import Forward, batches, call_inputs
from conversion_ext.data.inputs import device_of
from conversion_ext.errors import CalibrationError, require
from conversion_ext.types import PerChannel

__all__ = ["center_features"]


def center_features(
    ann: nn.Module,
    calibration: Any,
    *,
    above: float = 1.0,
    forward: Forward | None = None,
    leaf: Iterable[str | type[nn.Module]] = (),
    skip: Iterable[str] = (),
) -> GraphModule:
    """Return a copy of ``ann`` with the same function, in which linear layers see features around 0.

    A feature whose mean lies more than ``above`` standard deviations from 0 loses its mean in front of every linear
    layer, whose bias gets it: ``W x + b = W (x - o) + (b + W o)``. The encoders in front of these layers then spend
    their levels on what differs between inputs, and no spikes on what does not. Use it before
    ``convert(..., recipe="default-attention")`` for transformers with outliers, features that stay far from 0 for all
    inputs; ``default-attention`` has a threshold for each feature already, which a scale moved into the weight of the
    LayerNorm would not change.

    >>> ann = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    >>> _ = nn.init.constant_(ann[0].bias, 9.0)
    >>> x = torch.randn(8, 4)
    >>> torch.allclose(center_features(ann, x)(x), ann(x), atol=1e-5)
    True

    Args:
        ann: the network.
        calibration: data as :func:`convert` reads it.
        above: how many standard deviations from 0 a mean has to be; 0 for all features.
        forward: ``forward(model, batch)`` calls a network of several inputs.
        leaf: types or paths of modules that are not traced into.
        skip: paths of modules that stay as they are.

    Returns:
        The copy, in evaluation mode.

    Raises:
        UnsupportedError: for a network that cannot be traced.
        CalibrationError: for data without a batch.

    Related: per-channel offsets of thresholds (Cao et al., AAAI 2026); shifts moved into the next layer against
    outliers in quantisation (Wei et al., Outlier Suppression+, 2023).
    """
    require(above >= 0, f"center_features(above={above!r}): give a number of standard deviations >= 0.")
    data = batches(calibration)
    first = next(iter(data), None)
    require(first is not None, "The calibration data holds no batch; pass at least one.", CalibrationError)
    model = capture(ann, call_inputs(first, forward, device_of(ann)), leaf=leaf, skip=skip)
    called = list(layers(model, nn.Linear))
    calls = Counter(layer for _, layer in called)
    alone = [(node, layer) for node, layer in called if calls[layer] == 1]  # one bias cannot hold two offsets
    moments = _moments(model, [layer for _, layer in alone], data, forward)
    centred: dict[tuple[Any, bytes], Node] = {}
    for node, layer in alone:
        offset = _offset(moments[layer], above)
        if offset is not None:
            _center(model, node, layer, offset, centred)
    graph.refresh(model)
    return model.eval()


@torch.no_grad()
def _moments(model: GraphModule, linear: Iterable[Any], data: Any, forward: Forward | None) -> dict[Any, Moments]:
    """Return mean and standard deviation of every input feature of the layers."""
    moments = {layer: Moments(layer.in_features, layer.weight.device) for layer in linear}

    def see(layer: Any, inputs: Any) -> None:
        moments[layer].add(as_channels(inputs[0], PerChannel(-1), "a linear layer"))

    hooks = [layer.register_forward_pre_hook(see) for layer in moments]
    try:
        for batch in data:
            model(*call_inputs(batch, forward, device_of(model)))
    finally:
        for hook in hooks:
            hook.remove()
    return moments


def _offset(moments: Moments, above: float) -> Tensor | None:
    """Return the means of features that are far from 0, and 0 for the others; None where no feature is."""
    if moments.count == 0:
        return None
    mean, deviation = moments.mean_and_std()
    offset = torch.where(mean.abs() > above * deviation, mean, 0.0)
    return offset if bool(offset.any()) else None


def _center(model: GraphModule, node: Node, layer: Any, offset: Tensor, centred: dict[Any, Node]) -> None:
    """Take the offset from what ``layer`` is given, and put what it makes of it into its bias."""
    source: Any = node.args[0]
    offset = offset.to(layer.weight.dtype)
    key = source, offset.cpu().numpy().tobytes()
    if key not in centred:  # queries, keys and values read one tensor
        name = graph.rename_free(model, f"{node.name}_offset")
        model.register_buffer(name, offset)
        with model.graph.inserting_before(node):
            centred[key] = model.graph.call_function(torch.sub, (source, model.graph.get_attr(name)))
        graph.note(centred[key], key=f"{graph.key_of(node)}.centred")
    node.replace_input_with(source, centred[key])
    constant = layer.weight.detach().double() @ offset.double()
    bias = constant if layer.bias is None else constant + layer.bias.detach().double()
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
