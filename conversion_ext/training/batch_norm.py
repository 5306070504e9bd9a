"""BatchNorm that exists only while a converted network is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from conversion_ext import graph
from conversion_ext.graph.layers import FORWARD_WEIGHTS

__all__ = ["Normalized", "normalizable"]

EPSILON, MOMENTUM = 1e-5, 0.1


class Normalized(nn.Module):
    """A weight layer with BatchNorm behind it, over samples and steps; ``folded`` is the layer that it amounts to.

    It starts as what the layer is: ``observe`` takes the statistics of a batch for the running ones, and for scale and
    shift as well. A conversion folds the BatchNorm of the ANN away, and without any a network learns slowly.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight: Any = layer.weight
        self.layer: Any = layer
        self.layer.bias.requires_grad_(False)  # the shift has taken its part
        self.scale, self.shift = (nn.Parameter(weight.new_ones(len(weight))) for _ in range(2))
        for name in ("mean", "variance"):
            self.register_buffer(name, weight.new_ones(len(weight)))

    def observe(self, layer: nn.Module, args: Any, y: Tensor) -> None:
        """Become the identity behind the layer, for outputs y [N, C, ...] of it and others like them; a hook on it."""
        with torch.no_grad():
            variance, mean = torch.var_mean(y.transpose(0, 1).flatten(1), 1, correction=0)
            self.mean.copy_(mean)
            self.variance.copy_(variance)
            self.scale.copy_((variance + EPSILON).sqrt())
            self.shift.copy_(mean)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, normalized by the statistics of this batch, of one value by the running ones."""
        y = self.layer(x)
        several = y.numel() > y.shape[1]
        return F.batch_norm(y, self.mean, self.variance, self.scale, self.shift, several, MOMENTUM, EPSILON)

    def folded(self) -> dict[str, Tensor]:
        """Return weight and bias of one layer that does the same, by the running statistics."""
        weight, bias = self.layer.weight.detach(), self.layer.bias.detach()
        gain = self.scale.detach() / (self.variance + EPSILON).sqrt()
        shaped = gain.reshape(-1, *[1] * (weight.dim() - 1))
        return {"weight": weight * shaped, "bias": (bias - self.mean) * gain + self.shift.detach()}


def normalizable(body: GraphModule) -> Iterator[str]:
    """Yield the paths of the layers that learn and may be normalized: convolutions and linear ones, not the last.

    Left alone is what is called twice, shares its weights, has no bias, or is an output of the network.
    """
    calls = [str(node.target) for node in body.graph.nodes if node.op == "call_module"]
    owners: dict[int, int] = {}
    for module in body.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for node, layer in graph.modules_called(body, *FORWARD_WEIGHTS):
        shape = graph.info(node).shape
        spread = isinstance(layer, nn.Linear) and (shape is None or len(shape) != 2)
        last = any(user.op == "output" for user in node.users)
        alone = calls.count(str(node.target)) == 1 and all(owners[id(p)] == 1 for p in layer.parameters())
        if alone and not last and not spread and layer.bias is not None and layer.weight.requires_grad:
            yield str(node.target)
