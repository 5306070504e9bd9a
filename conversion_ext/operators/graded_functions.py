"""Functions of one or more tensors that are not positively homogeneous, or not of one tensor: graded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from conversion_ext import graph
from conversion_ext.operators.base import Activation, Operator, register_operator
from conversion_ext.operators.sites import SiteKind

__all__ = ["graded_function"]


@register_operator(
    nn.Threshold, nn.GLU, F.glu, torch.norm, "norm", torch.linalg.norm, torch.linalg.vector_norm, F.cosine_similarity,
    F.pairwise_distance, torch.cdist, "var", torch.var, "std", torch.std, torch.erf, "erf", torch.reciprocal,
    "reciprocal", torch.rsqrt, "rsqrt", torch.log1p, "log1p", torch.expm1, "expm1", torch.sin, "sin", torch.cos, "cos",
    torch.atan, "atan", torch.hypot, "hypot", torch.logsumexp, "logsumexp", torch.prod, "prod", nn.Tanhshrink,
    nn.Softshrink, nn.Hardshrink, nn.RReLU, nn.Softmin,
)  # fmt: skip
def graded_function(node: Node, module: nn.Module | None) -> Operator:
    """Norms, similarities, distances, moments, gates, functions of a number: differential, of the mean input."""
    return Operator() if graph.info(node).is_constant else Activation(SiteKind.GRADED)
