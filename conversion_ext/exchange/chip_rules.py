"""What the graph of a network must be to run on a chip: small rules, each of which names every breach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.fx import Node

from conversion_ext import graph
from conversion_ext.errors import Problem
from conversion_ext.exchange.chip_subject import Rule, Subject, is_mean, pair, problem
from conversion_ext.exchange.chips import Chip
from conversion_ext.graph.layers import ADAPTIVE_AVERAGE_POOLS, AVERAGE_POOLS, WEIGHTS
from conversion_ext.integer.modules import IntegerInput
from conversion_ext.network.lookahead import Clock
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.time import ExpandTime
from conversion_ext.nn.channel_scale import ChannelScale
from conversion_ext.nn.max_pool import SpikingMaxPool
from conversion_ext.operators.arithmetic import Sum
from conversion_ext.operators.base import operator_of
from conversion_ext.operators.movement import Movement

__all__ = ["RULES"]

HARMLESS = (nn.Flatten, nn.Identity, ExpandTime, IntegerInput, Clock)  # a clock goes with sites that look ahead


def layer_kinds(subject: Subject) -> Iterator[Problem]:
    """Weight layers are of the kinds that the chip has."""
    kinds = subject.chip.layers
    for node, layer in subject.layers():
        if type(layer).__name__ not in kinds:
            remedy = f"Use {' or '.join(kinds)}."
            yield problem(node, f"the chip has no {type(layer).__name__}.", remedy)


def functions(subject: Subject) -> Iterator[Problem]:
    """Nothing stands in the network but weight layers, neurons, pools and flattening."""
    known = (*WEIGHTS, SpikingSite, ChannelScale, SpikingMaxPool, *AVERAGE_POOLS, *ADAPTIVE_AVERAGE_POOLS, *HARMLESS)
    for node, module in subject.nodes():
        operator = operator_of(subject.snn.body, node)
        if isinstance(module, known) or (isinstance(operator, Movement) and len(node.all_input_nodes) == 1):
            continue
        if is_mean(node, module) or (type(operator) is Sum and subject.chip.sums):
            continue
        kind = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
        if isinstance(operator, Sum):
            remedy = "Use a network without shortcuts: the chip gives a neuron the output of one layer."
            yield problem(node, "the chip adds no branches.", remedy)
        elif hasattr(operator, "stateful") or module is None:
            remedy = "Train with ReLU, average pooling and no concatenation or attention."
            yield problem(node, f"the chip has no {kind}.", remedy)


def scales_left_over(subject: Subject) -> Iterator[Problem]:
    """Every scale is within a weight layer, but for what the output of the last neurons is worth to the host."""
    if subject.chip.scales:
        return
    for node, module in subject.nodes():
        if isinstance(module, ChannelScale) and not _is_readout(subject, node):
            remedy = "Put a weight layer between any two layers of neurons (relay=False), or use PerLayer() thresholds."
            yield problem(node, "a multiplication stands outside of weight layers.", remedy)


def _is_readout(subject: Subject, node: Node) -> bool:
    source = graph.module_of(subject.snn.body, node.all_input_nodes[0])
    return isinstance(source, SpikingSite) and all(user.op == "output" for user in node.users)


def pools(subject: Subject) -> Iterator[Problem]:
    """Pools are of the kinds that the chip has, square, with windows that do not overlap."""
    chip = subject.chip
    for node, module in subject.nodes():
        if isinstance(module, SpikingMaxPool):
            if "max" not in chip.pools:
                yield problem(node, "the chip has no max-pool.", "Train with cx.recipes.max_to_average(ann).")
        elif isinstance(module, ADAPTIVE_AVERAGE_POOLS) or is_mean(node, module):
            if "global" not in chip.pools:
                yield problem(node, "the chip has no adaptive pool or mean.", "Use nn.AvgPool2d with its window.")
        elif isinstance(module, AVERAGE_POOLS):
            yield from _average_pool(node, module, chip)


def _average_pool(node: Node, module: Any, chip: Chip) -> Iterator[Problem]:
    kernel, stride, padding = (pair(v) for v in (module.kernel_size, module.stride, module.padding))
    sums = getattr(module, "divisor_override", None) == 1
    if not chip.pools or not {"sum", "average"} & set(chip.pools):
        yield problem(node, "the chip has no average pool.", "Use convolutions of stride 2 in the place of pools.")
        return
    if "average" not in chip.pools and not sums:
        remedy = 'Use Recipe(pool="sum"), or cx.exchange.sum_pools(snn): sums, the divisor in the next weights.'
        yield problem(node, "the chip adds up windows and divides by nothing.", remedy)
    if len(set(kernel)) > 1 or stride != kernel or any(padding):
        remedy = "Use a square window whose stride is its size, without padding."
        yield problem(node, f"the chip pools squares that do not overlap, not {kernel} by {stride}.", remedy)
    elif chip.pool_sizes is not None and kernel[0] not in chip.pool_sizes:
        remedy = f"Use windows of {', '.join(map(str, chip.pool_sizes))}."
        yield problem(node, f"the chip has no pool of size {kernel[0]}.", remedy)


def neurons_behind_layers(subject: Subject) -> Iterator[Problem]:
    """Behind every weight layer, the last one too, there are neurons."""
    if not subject.chip.neurons_everywhere:
        return
    for node, _ in subject.layers():
        if not _reaches_neurons(subject, node):
            remedy = "Convert with readout=SpikeCount(), as dataclasses.replace(recipe, readout=...) makes it."
            yield problem(node, "no neurons stand behind this weight layer.", remedy)


def _reaches_neurons(subject: Subject, node: Node) -> bool:
    users = list(node.users)
    if not users:
        return False
    for user in users:
        module = graph.module_of(subject.snn.body, user)
        if isinstance(module, SpikingSite):
            continue
        if user.op == "output" or isinstance(module, WEIGHTS) or not _reaches_neurons(subject, user):
            return False
    return True


def convolutions(subject: Subject) -> Iterator[Problem]:
    """Kernels, strides, padding and groups are within what the chip has."""
    chip = subject.chip
    for node, layer in subject.layers():
        if not isinstance(layer, nn.Conv2d):
            continue
        kernel, stride, padding = (pair(v) for v in (layer.kernel_size, layer.stride, layer.padding))
        if chip.kernel is not None and (len(set(kernel)) > 1 or kernel[0] > chip.kernel):
            yield problem(node, f"its kernel is {kernel}.", f"Use square kernels of at most {chip.kernel}.")
        if chip.strides is not None and (len(set(stride)) > 1 or stride[0] not in chip.strides):
            yield problem(node, f"its stride is {stride}.", f"Use {', '.join(map(str, chip.strides))} both ways.")
        if chip.padding is not None and max(padding) > chip.padding:
            yield problem(node, f"its padding is {padding}.", f"Use at most {chip.padding}.")
        if layer.groups > 1 and not chip.groups:
            yield problem(node, f"it has {layer.groups} groups.", "Train without groups.")


def biases(subject: Subject) -> Iterator[Problem]:
    """Biases stand where the chip can do them right."""
    rule = subject.chip.biases
    for number, (node, layer) in enumerate(subject.layers()):
        if rule == "yes" or layer.bias is None or not bool(layer.bias.any()):
            continue
        if rule == "no":
            yield problem(node, "its weights have a bias, which the chip has not.", "Train with bias=False.")
        elif number:
            yield problem(
                node,
                "spikes take a step per layer to arrive, and its bias charges neurons from the first step on.",
                "Train with bias=False and without BatchNorm behind the first layer.",
            )


RULES: tuple[Rule, ...] = (
    layer_kinds, functions, scales_left_over, pools, neurons_behind_layers, convolutions, biases,
)  # fmt: skip
