"""Weight layers in fewer bits; everything that remembers stays as it is."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from conversion_ext import graph
from conversion_ext.errors import require
from conversion_ext.graph.layers import TRANSPOSED
from conversion_ext.graph.layers import WEIGHTS as SYNAPSES
from conversion_ext.network.site import SpikingSite
from conversion_ext.nn.stateful import Memory

__all__ = ["DTYPES", "WEIGHTS", "narrowed"]

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHTS = ("int8",)


class Narrow(nn.Module):
    """A layer that computes in ``dtype`` whatever it is given."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer.to(dtype), dtype

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return what the layer makes of ``inputs``, in ``dtype``."""
        return self.layer(*(x.to(self.dtype) for x in inputs))


def narrowed(body: GraphModule, dtype: str | torch.dtype | None, weights: str | None) -> GraphModule:
    """Return ``body`` with rounded copies of its weight layers, all but the readout; all else is shared with ``body``.

    ``dtype``: that of weights and of what layers emit. ``weights="int8"``: weights become integers from -127 to 127
    times one scale per output channel, ``max |w| / 127``.
    """
    name = str(dtype).removeprefix("torch.")
    require(
        dtype is None or name in DTYPES,
        f"dtype={dtype!r}: weight layers compute in one of {', '.join(DTYPES)}; None leaves them as they are.",
    )
    require(weights in (None, *WEIGHTS), f'weights={weights!r}: use "int8", or None to leave them as they are.')
    readout = set(graph.output_of(body).all_input_nodes)
    new = GraphModule(body, body.graph)
    for node in body.graph.nodes:
        layer = graph.module_of(body, node)
        if layer is None or isinstance(layer, (SpikingSite, Memory)) or _dtype(layer) is None:
            continue
        if weights is not None and isinstance(layer, SYNAPSES) and node not in readout:
            layer = copy.deepcopy(layer)
            layer.weight.data = _rounded(layer.weight.data, 1 if isinstance(layer, TRANSPOSED) else 0)
        inner = _dtype(layer) if node in readout or dtype is None else DTYPES[name]
        assert inner is not None
        new.set_submodule(str(node.target), Narrow(copy.deepcopy(layer), inner))
    return new


def _dtype(layer: nn.Module) -> torch.dtype | None:
    """Return the dtype of the weights or scales of a layer, None if it has none."""
    return next((t.dtype for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point()), None)


def _rounded(weight: Tensor, dim: int) -> Tensor:
    """Return the weights as integers times one scale per index of ``dim``."""
    scale = weight.abs().amax([d for d in range(weight.dim()) if d != dim], keepdim=True) / 127
    return torch.where(scale > 0, (weight / scale).round() * scale, weight)
