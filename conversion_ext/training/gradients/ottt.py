"""OTTT: weights that learn from the sum of all they were given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext import graph
from conversion_ext.errors import require
from conversion_ext.graph.layers import WEIGHTS
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.neurons import IF, LIF
from conversion_ext.nn.stateful import Memory
from conversion_ext.training.gradients.base import register_gradient
from conversion_ext.training.gradients.online import Online

__all__ = ["OTTT"]


@dataclass(frozen=True)
class OTTT(Online):
    """Online training through time: step by step as ``Online(1)``, but each weight learns from the trace of its input.

    ``dL/dW = sum_t d[t] a[t]`` with the trace ``a[t] = (1 - leak) a[t-1] + x[t]``: the potential holds earlier inputs
    too. Layers behind the last neurons have no potential and no trace. SpikingJelly's ``OTTTLIFNode`` is an IF neuron
    for ``tau = inf``, but hands on pairs of spike and trace that only its ``OTTTSequential`` passes through a
    network, a chain; the gradient of weights between two such nodes is this one.

    Reference: Xiao et al., NeurIPS 2022.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps == 1, f"OTTT(steps={self.steps!r}): a trace is that of single steps; leave it at 1.")

    def prepare(self, snn: SpikingNetwork) -> None:
        """Let every weight layer before a site have a trace."""
        for layer, kept in _before_sites(snn).items():
            trace = Trace(kept)
            layer.add_module("trace", trace)
            layer.register_forward_hook(trace.after)


class Trace(Memory):
    """The leaky sum of what a weight layer was given, from which its weights learn."""

    state_names = ("total",)
    total: Tensor | None

    def __init__(self, kept: float) -> None:
        super().__init__()
        self.kept = kept

    def after(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Return ``output`` with a gradient to the input as it was, and to the weights as if the trace had been it."""
        (x,) = inputs
        self.total = x.detach() if self.total is None else self.kept * self.total + x.detach()
        return _InPlaceOf.apply(layer.forward(_InPlaceOf.apply(x, self.total)), output.detach())


class _InPlaceOf(torch.autograd.Function):
    """Forward value of ``value``, gradient of ``differentiated``; valid because the layer is linear in its input."""

    @staticmethod
    def forward(ctx: Any, differentiated: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


def _before_sites(snn: SpikingNetwork) -> dict[nn.Module, float]:
    """Return {weight layer: what the neurons behind it keep of their potential}, if there are any."""
    kept: dict[Any, float] = {}
    before: dict[nn.Module, float] = {}
    for node in reversed(snn.body.graph.nodes):
        module = graph.module_of(snn.body, node)
        if isinstance(module, SpikingSite):
            spec = module.spec
            require(
                ((type(spec) is IF and spec.floor is None) or type(spec) is LIF) and not spec.ahead,
                f"{module.key} has {spec}, whose potential is no sum of inputs; OTTT is for IF and LIF.",
            )
            value = 1 - 1 / spec.tau if isinstance(spec, LIF) else 1.0
        elif node not in kept:
            continue
        else:
            value = kept[node]
            layers = [] if module is None else [part for part in module.modules() if isinstance(part, WEIGHTS)]
            for layer in layers:
                require(layer not in before, f"{node.target} is called twice, and a trace is that of one input.")
                before[layer] = value
        for source in node.all_input_nodes:
            kept[source] = value
    return before


register_gradient("ottt", OTTT())
