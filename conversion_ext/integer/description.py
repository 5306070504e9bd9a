"""The integers of a converted network, as plain numbers for a chip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from conversion_ext import graph
from conversion_ext.errors import require
from conversion_ext.graph.layers import TRANSPOSED
from conversion_ext.integer.modules import IntegerAffine, IntegerInput, IntegerStepping
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.neurons import IF
from conversion_ext.nn.channel_scale import ChannelScale

__all__ = ["IntegerLayer", "IntegerNeurons", "overflows", "parameters"]


@dataclass(frozen=True)
class IntegerLayer:
    """A weight layer or scale: ``2^-weight_exponent (weight * input) + 2^-bias_exponent bias``, in thresholds.

    Exponents are per output channel; the input is spikes, sums of them, the integers of an image, or currents.
    """

    weight: Tensor
    weight_exponent: Tensor
    bias: Tensor | None = None
    bias_exponent: Tensor | None = None


@dataclass(frozen=True)
class IntegerNeurons:
    """A site: its ``threshold``, the potential before the first step, what is added to each current, in its units.

    ``floor`` is where potentials stop behind a spike, None: at no other than the end of their bits; ``strict`` says
    that they have to exceed the threshold, ``reset`` what a spike does to them: "subtract" or "zero".
    """

    threshold: int
    bits: int
    v_init: Tensor
    bias: Tensor
    floor: int | None = None
    strict: bool = False
    reset: str = "subtract"


def parameters(snn: SpikingNetwork) -> dict[str, IntegerLayer | IntegerNeurons | IntegerInput]:
    """Return {key: integers} of every input, weight layer, scale and site of what ``integers`` made, in graph order."""
    require(snn.conversion.widths is not None, "snn is not in integers; pass what integers() returned.")
    parameters: dict[str, IntegerLayer | IntegerNeurons | IntegerInput] = {}
    for node in snn.body.graph.nodes:
        module: Any = graph.module_of(snn.body, node)
        if isinstance(module, IntegerInput):
            parameters[module.key] = module
        elif isinstance(module, SpikingSite):
            stepping: Any = module.stepping
            start, bias = (_int(v * stepping.threshold) for v in (module.v_init, module.bias / module.threshold))
            parameters[module.key] = IntegerNeurons(stepping.threshold, stepping.bits, start, bias, **_of(module))
        elif hasattr(module, "weight_exponent"):
            parameters[graph.key_of(node)] = _layer(module)
        elif node.op == "get_attr" and hasattr(snn.body, f"{node.target}_exponent"):
            k: Any = getattr(snn.body, f"{node.target}_exponent")
            parameters[str(node.target)] = IntegerLayer(
                _int(getattr(snn.body, str(node.target)) * torch.exp2(k)), _int(k)
            )
    return parameters


def _of(site: SpikingSite) -> dict[str, Any]:
    """Return what distinguishes the neurons of ``site`` from IF with soft reset."""
    if not isinstance(site.spec, IF):
        return {}
    floor = site.spec.floor
    scale = cast(IntegerStepping, site.stepping).threshold
    return {
        "floor": None if floor is None else round(floor * scale),
        "strict": site.spec.strict,
        "reset": str(site.spec.reset.value),
    }


def _layer(module: Any) -> IntegerLayer:
    k = module.weight_exponent
    if isinstance(module, ChannelScale):
        return IntegerLayer(_int(module.scale * torch.exp2(k)), _int(k))
    if isinstance(module, IntegerAffine):
        shift = module.shift * torch.exp2(module.bias_exponent)
        return IntegerLayer(_int(module.scale * torch.exp2(k)), _int(k), _int(shift), _int(module.bias_exponent))
    transposed = isinstance(module, TRANSPOSED)
    rows = module.weight.movedim(int(transposed), 0)
    shared = k[: len(rows)].view(-1, *[1] * (rows.dim() - 1))  # by the groups of a transposed convolution
    weight = _int(rows * torch.exp2(shared)).movedim(0, int(transposed))
    if module.bias is None:
        return IntegerLayer(weight, _int(k))
    return IntegerLayer(
        weight, _int(k), _int(module.bias * torch.exp2(module.bias_exponent)), _int(module.bias_exponent)
    )


def _int(value: Tensor) -> Tensor:
    return value.detach().round().to(torch.int64)


def overflows(snn: SpikingNetwork) -> dict[str, int]:
    """Return {site or input: how many values stopped at the end of their width} since the last call."""
    parts = [part for part in snn.modules() if isinstance(part, (IntegerInput, IntegerStepping))]
    overflows = {part.key: part.overflows for part in parts}
    for part in parts:
        part.overflows = 0
    return overflows
