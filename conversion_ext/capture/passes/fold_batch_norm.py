"""BatchNorm is an affine map per channel in evaluation mode; a neighbouring weight layer absorbs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from conversion_ext.capture.passes.base import layer_of, layers
from conversion_ext.graph import info, module_of, note, refresh
from conversion_ext.graph.layers import (
    BATCH_NORMS,
    CONVOLUTIONS,
    TRANSPOSED,
    affine_of,
    along_inputs,
    along_outputs,
    pads_zeros,
)

__all__ = ["FoldBatchNorm"]

Fold = Callable[[Any, Tensor, Tensor], None]


class FoldBatchNorm:
    """``BN(W x + b) = (g W) x + (g b + s)`` and ``W BN(x) + b = (W g) x + (W s + b)`` with ``BN(x) = g x + s``.

    Computed in float64. Weights become new parameters, so a layer tied to another leaves it alone. A BatchNorm
    *before* a layer is folded where padding does not come between: zeros are padded after the BatchNorm, so a
    zero-padded convolution needs ``s = 0``. What cannot be folded stays, and BatchNorm on batch statistics does too.
    """

    def run(self, model: GraphModule) -> None:
        """Fold into the preceding layer where there is one, else into the following one.

        ``meta["normal"]`` of the node that computes a normalized value tells its mean and standard deviation [C].
        """
        for norm, module in layers(model, *BATCH_NORMS):
            note(norm, normal=_normal(module))
        while plans := _plans(model):
            for norm, target, fold in plans:
                gain, shift = affine_of(layer_of(model, norm, *BATCH_NORMS))
                fold(module_of(model, target), gain, shift)
                if fold is _fold_back:
                    note(target, normal=info(norm).normal)
                norm.replace_all_uses_with(norm.args[0])  # pyright: ignore[reportArgumentType] (its input, a node)
                model.graph.erase_node(norm)
        refresh(model)

    def ensures(self, model: GraphModule) -> list[str]:
        """No BatchNorm is left that a neighbour can absorb."""
        return [f"{norm.name} can be folded into {target.name}." for norm, target, _ in _plans(model)]


def _plans(model: GraphModule) -> list[tuple[Node, Node, Fold]]:
    """Return (BatchNorm, layer, how to fold) of what can be folded at once, at most one BatchNorm per layer."""
    plans: dict[Node, tuple[Node, Node, Fold]] = {}
    for norm, module in layers(model, *BATCH_NORMS):
        if module.running_mean is None or module.training:
            continue
        source = norm.args[0]
        before = source if isinstance(source, Node) and list(source.users) == [norm] else None
        if layer_of(model, before, *CONVOLUTIONS, *TRANSPOSED) is None:
            before = before if layer_of(model, before, nn.Linear) is not None and _is_matrix(model, before) else None
        target = before or _absorbing(model, norm, module)
        if target is not None:
            plans.setdefault(target, (norm, target, _fold_back if before else _fold_forward))
    return list(plans.values())


def _absorbing(model: GraphModule, norm: Node, module: Any) -> Node | None:
    """Return the layer behind ``norm`` that can absorb it, or None."""
    users = list(norm.users)
    if len(users) != 1:
        return None
    after = users[0]
    conv = layer_of(model, after, *CONVOLUTIONS)
    if conv is not None:
        return after if not pads_zeros(conv) or not bool(affine_of(module)[1].any()) else None
    flatten = layer_of(model, after, nn.Flatten)
    if flatten is not None:
        users = list(after.users)
        if (flatten.start_dim, flatten.end_dim) != (1, -1) or len(users) != 1:
            return None
        after = users[0]
    linear = layer_of(model, after, nn.Linear)
    flat = flatten is not None or _is_matrix(model, norm)
    return after if linear is not None and flat and linear.in_features % module.num_features == 0 else None


def _is_matrix(model: GraphModule, node: Node | None) -> bool:
    """Return whether the output of ``node`` is known to be [N, features]: Linear works on the last dimension of any."""
    if node is None:
        return False
    shape = info(node).shape
    if isinstance(shape, torch.Size):
        return len(shape) == 2
    flatten = layer_of(model, node, nn.Flatten)
    if flatten is not None:
        return (flatten.start_dim, flatten.end_dim) == (1, -1)
    layer = layer_of(model, node, nn.Linear, nn.ReLU, nn.Hardtanh, *BATCH_NORMS)
    source = node.args[0] if layer is not None else None
    return isinstance(source, Node) and _is_matrix(model, source)


def _normal(norm: Any) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of what a BatchNorm puts out, in float64."""
    zeros = torch.zeros(norm.num_features, dtype=torch.float64)
    mean = zeros if norm.bias is None else norm.bias.detach().double()
    return mean, zeros + 1 if norm.weight is None else norm.weight.detach().double().abs()


def _fold_back(layer: Any, gain: Tensor, shift: Tensor) -> None:
    """Absorb a BatchNorm behind ``layer``."""
    weight = layer.weight.detach().double() * along_outputs(layer, gain)
    bias = shift if layer.bias is None else layer.bias.detach().double() * gain + shift
    _set(layer, weight, bias)


def _fold_forward(layer: Any, gain: Tensor, shift: Tensor) -> None:
    """Absorb a BatchNorm before ``layer``."""
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.Linear):  # behind a Flatten, each channel is repeated over its positions
        repeats = layer.in_features // len(gain)
        gain, shift = gain.repeat_interleave(repeats), shift.repeat_interleave(repeats)
    gain, shift = along_inputs(layer, gain), along_inputs(layer, shift)
    bias = (weight * shift).flatten(1).sum(1)
    _set(layer, weight * gain, bias if layer.bias is None else bias + layer.bias.detach().double())


def _set(layer: Any, weight: Tensor, bias: Tensor) -> None:
    """Give ``layer`` new parameters in its own dtype."""
    old, trained = layer.weight, layer.weight.requires_grad
    layer.weight = nn.Parameter(weight.to(old.dtype), requires_grad=trained)
    if layer.bias is not None:
        trained = layer.bias.requires_grad
    layer.bias = nn.Parameter(bias.to(old.dtype), requires_grad=trained)
