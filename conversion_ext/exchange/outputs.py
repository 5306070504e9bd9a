"""Spikes as the output of a network, for chips and hosts that count them."""

from __future__ import annotations

import copy

from conversion_ext import graph
from conversion_ext.errors import require
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.network.state import reset
from conversion_ext.nn.channel_scale import ChannelScale

__all__ = ["spiking_output"]


def spiking_output(snn: SpikingNetwork) -> SpikingNetwork:
    """Return a copy whose output is the spikes of the output neurons, {0, 1}, without the scale behind them.

    Use it where a chip or another tool has nothing behind neurons. Readouts of spikes decode the same from it: the
    scale is one number for all classes.

    Args:
        snn: A folded network with output neurons, as a readout of spikes such as ``SpikeCount()`` makes them.

    Raises:
        ValueError: The network is not folded or has no output neurons.
    """
    require(snn.conversion.folded, "Spikes are 0 and 1 with thresholds within the weights; convert with fold=True.")
    require(
        snn.conversion.recipe.readout.spiking,
        "The network has no output neurons; convert with a readout of spikes, Recipe(readout=SpikeCount()).",
    )
    new = copy.deepcopy(snn)
    output = graph.output_of(new.body)
    for node in output.all_input_nodes:
        source = node.all_input_nodes[0]
        scales = isinstance(graph.module_of(new.body, node), ChannelScale)
        if scales and isinstance(graph.module_of(new.body, source), SpikingSite):
            output.replace_input_with(node, source)
    graph.refresh(new.body)
    reset(new)
    return new
