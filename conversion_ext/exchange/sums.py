"""Average pools as sums, in a network that was converted already."""

from __future__ import annotations

import copy

from conversion_ext.conversion.sums import add_up
from conversion_ext.errors import require
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.network.state import reset

__all__ = ["sum_pools"]


def sum_pools(snn: SpikingNetwork) -> SpikingNetwork:
    """Return a copy of a folded network whose average pools add, as ``Recipe(pool="sum")`` makes it.

    A chip's pool passes every spike on and divides by nothing. The copy computes the same but for rounding.

    Raises:
        UnsupportedError: An average pool is read by something that is no weight layer, or by several.
    """
    require(snn.conversion.folded, "Sums need thresholds within the weights; convert with fold=True.")
    new = copy.deepcopy(snn)
    add_up(new.body)
    reset(new)
    return new
