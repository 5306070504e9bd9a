"""Average pools as the sums that chips do, their divisor within the next weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.errors import Problem, UnsupportedError, require
from conversion_ext.exchange.chip_subject import pair
from conversion_ext.graph.layers import WEIGHTS
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.network.state import reset
from conversion_ext.operators.base import operator_of
from conversion_ext.operators.movement import Movement

__all__ = ["sum_pools"]


def sum_pools(snn: SpikingNetwork) -> SpikingNetwork:
    """Return a copy of a folded network whose average pools add, with their divisor in the weights behind them.

    A chip's pool passes every spike on and divides by nothing. The copy computes the same but for rounding.

    Raises:
        UnsupportedError: An average pool is read by something that is no weight layer, or by several.
    """
    require(snn.conversion.folded, "Sums need thresholds within the weights; convert with fold=True.")
    new = copy.deepcopy(snn)
    for node, pool in list(graph.modules_called(new.body, nn.AvgPool2d)):
        if pool.divisor_override == 1:
            continue
        layer = _reader(new.body, node)
        with torch.no_grad():
            layer.get_parameter("weight").div_(pool.divisor_override or math.prod(pair(pool.kernel_size)))
        summed = nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, divisor_override=1)
        new.body.set_submodule(str(node.target), summed.eval())
    reset(new)
    return new


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
