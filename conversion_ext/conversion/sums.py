"""Average pools as the sums that chips do, their divisor within the next weights."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.errors import Problem, UnsupportedError
from conversion_ext.graph.layers import WEIGHTS
from conversion_ext.operators.base import operator_of
from conversion_ext.operators.movement import Movement

__all__ = ["add_up"]


def add_up(body: GraphModule) -> None:
    """Let the average pools of a folded ``body`` add, in place, with their divisor in the weights behind them.

    Raises:
        UnsupportedError: An average pool is read by something that is no weight layer, or by several.
    """
    for node, pool in list(graph.modules_called(body, nn.AvgPool2d)):
        if pool.divisor_override == 1:
            continue
        layer = _reader(body, node)
        size = pool.kernel_size if isinstance(pool.kernel_size, tuple) else (pool.kernel_size,) * 2
        with torch.no_grad():
            layer.get_parameter("weight").div_(pool.divisor_override or math.prod(size))
        summed = nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, divisor_override=1)
        body.set_submodule(str(node.target), summed.eval())


def _reader(body: GraphModule, node: Node) -> nn.Module:
    """Return the weight layer that alone reads ``node``, behind flattening."""
    users = list(node.users)
    module = graph.module_of(body, users[0]) if len(users) == 1 else None
    if isinstance(module, WEIGHTS):
        return module
    if len(users) == 1 and isinstance(operator_of(body, users[0]), Movement):
        return _reader(body, users[0])
    problem = Problem(
        graph.key_of(node), "its sum is not read by one weight layer.", "Use average pools in front of weight layers."
    )
    raise UnsupportedError(str(problem), (problem,))
