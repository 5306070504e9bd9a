"""How a converted network lies in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from conversion_ext import graph
from conversion_ext.network.site import SpikingSite

__all__ = ["channels_last"]


def channels_last(body: GraphModule) -> None:
    """Store the weights of 2-d convolutions channels-last, in place: their outputs are then laid out so as well.

    Measured on CPUs, convolutions take 0.4 to 0.9 of the time, depthwise ones 0.3. Left alone are networks on other
    devices, which were not measured, and networks with modules of the user's, which may ask for the order they know.
    """
    neurons = {part for m in body.modules() if isinstance(m, SpikingSite) for part in m.neuron.modules()}
    containers = {m for m in body.modules() if type(m) in (nn.Module, nn.Sequential, nn.ModuleList)} | {body}
    modules = [m for m in body.modules() if m not in neurons | containers]
    convolutions = [m for m in modules if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    known = all(graph.is_stock(m) or type(m).__module__.startswith("conversion_ext.") for m in modules)
    if not known or any(m.weight.device.type != "cpu" for m in convolutions):
        return
    for module in convolutions:
        module.weight.data = _last(module.weight.data)
    for node in body.graph.nodes:
        if node.op == "call_method" and node.target == "view":
            node.target = "reshape"  # a view may be impossible in the new order
    body.recompile()


def _last(weight: Tensor) -> Tensor:
    """Return [O, I, H, W] in channels-last order, by its strides also where a size of 1 leaves them open."""
    channels, height, width = weight.shape[1:]
    strides = (height * width * channels, 1, width * channels, channels)
    return torch.empty_strided(weight.shape, strides, dtype=weight.dtype).copy_(weight)
