"""Activations: ReLU and clipped ReLU become binary neurons; what is not positively homogeneous is differential."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional as F

from conversion_ext import graph
from conversion_ext.errors import Problem
from conversion_ext.nn.trained import Trained
from conversion_ext.operators.base import Activation, Operator, register_operator
from conversion_ext.operators.sites import SiteKind

__all__ = ["SignedRelay", "relu"]


class SignedRelay(nn.Identity):
    """The place of a relay whose values have either sign."""


@register_operator(nn.ReLU)
def relu(node: Node, module: nn.Module | None) -> Operator:
    """ReLU: an integrate-and-fire neuron."""
    return Activation(SiteKind.RELU)


@register_operator(nn.Hardtanh)
def hardtanh(node: Node, module: Any) -> Operator:
    """ReLU6 and other ReLUs clipped at b: an integrate-and-fire neuron whose threshold is at most b."""
    if module.min_val == 0 and module.max_val > 0:
        return Activation(SiteKind.RELU, cap=float(module.max_val))
    return Activation(SiteKind.GRADED, positive=module.min_val >= 0)


@register_operator(Trained)
def trained(node: Node, module: Any) -> Operator:
    """Activations trained for spikes, QCFS and SoftLIF: neurons with the threshold that they learned."""
    return Activation(SiteKind.RELU, threshold=float(module.site_threshold), neuron=module.site_neuron)


@register_operator(nn.LeakyReLU, nn.PReLU, SignedRelay)
def leaky_relu(node: Node, module: nn.Module | None) -> Operator:
    """LeakyReLU, PReLU and relays of signed values: signed spikes."""
    return Activation(SiteKind.SIGNED)


@register_operator(
    nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softmax2d, nn.Softplus, F.softmax, torch.softmax, "softmax",
    torch.sigmoid, "sigmoid",
)  # fmt: skip
def positive(node: Node, module: nn.Module | None) -> Operator:
    """Functions that are not positively homogeneous and never negative: the differential operator, graded."""
    return Operator() if graph.info(node).is_constant else Activation(SiteKind.GRADED, positive=True)


@register_operator(
    nn.Tanh, nn.SiLU, nn.Mish, nn.Hardswish, nn.GELU, nn.ELU, nn.CELU, nn.SELU, nn.Softsign, nn.LogSigmoid,
    nn.LogSoftmax, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d, F.log_softmax, F.layer_norm, F.rms_norm, F.group_norm, F.normalize, torch.tanh, "tanh",
    torch.clamp, "clamp", F.local_response_norm,
)  # fmt: skip
def graded(node: Node, module: nn.Module | None) -> Operator:
    """Functions that are not positively homogeneous: the differential operator, whose output is graded."""
    return Operator() if graph.info(node).is_constant else Activation(SiteKind.GRADED)


@register_operator(nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Transformer)
def sequence_model(node: Node, module: nn.Module | None) -> Problem:
    """Recurrent and attention layers are outside the reach of a rate code."""
    return Problem(
        graph.key_of(node),
        f"{type(module).__name__} keeps a state or attends over a sequence, which a rate code does not express.",
        "Convert the part of the network before it, or keep it analog with skip=.",
        graph.describe(node),
    )
