"""Where the layers of a network stand on a chip of cores: memory, and how many layers one may send to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.fx import Node

from conversion_ext import graph
from conversion_ext.errors import Problem
from conversion_ext.exchange.chip_subject import Rule, Subject, pair, problem
from conversion_ext.graph.layers import WEIGHTS
from conversion_ext.operators.base import operator_of
from conversion_ext.operators.movement import Movement

__all__ = ["CORES"]


def cores(subject: Subject) -> Iterator[Problem]:
    """Every weight layer with its neurons has a core, whichever way they are placed."""
    chip = subject.chip
    if not chip.kernel_memory:
        return
    layers = [(node, *_memory(subject, node, layer)) for node, layer in subject.layers()]
    sizes = list(zip(chip.kernel_memory, chip.neuron_memory, strict=True))
    fitting = [[i for i, (k, n) in enumerate(sizes) if kernel <= k and neurons <= n] for _, kernel, neurons in layers]
    for (node, kernel, neurons), core in zip(layers, _placed(fitting), strict=True):
        if core is None:
            reason = f"no core is left for {kernel} words of kernels and {neurons} neurons (powers of two)."
            yield problem(node, reason, "Use fewer channels, smaller maps, or fewer layers.")


def kernels_of_linear_layers(subject: Subject) -> Iterator[Problem]:
    """A linear layer is a convolution whose kernel covers the maps in front, which are within what a kernel may be."""
    most = subject.chip.kernel
    if most is None or not subject.chip.kernel_memory:
        return
    for node, layer in subject.layers():
        height, width = _maps(subject, node)[1:]
        if isinstance(layer, nn.Linear) and (height != width or height > most):
            remedy = f"Pool or stride down to squares of at most {most}."
            yield problem(node, f"it reads maps of {height} by {width}, which are its kernel there.", remedy)


def fan_outs(subject: Subject) -> Iterator[Problem]:
    """No layer sends its spikes to more layers than the chip has destinations for."""
    most = subject.chip.fan_out
    if most is None:
        return
    for node, _ in subject.sites():
        count = sum(1 for _ in _readers(subject, node))
        if count > most:
            yield problem(node, f"{count} layers read it, the chip has {most} destinations.", "Use fewer branches.")


def _placed(fitting: Sequence[Sequence[int]]) -> list[int | None]:
    """Return a core for each layer, of those that fit it, no core twice, for as many layers as possible."""
    taken: dict[int, int] = {}

    def place(layer: int, seen: set[int]) -> bool:
        for core in fitting[layer]:
            if core not in seen:
                seen.add(core)
                if core not in taken or place(taken[core], seen):
                    taken[core] = layer
                    return True
        return False

    for layer in range(len(fitting)):
        place(layer, set())
    where = {layer: core for core, layer in taken.items()}
    return [where.get(layer) for layer in range(len(fitting))]


def _memory(subject: Subject, node: Node, layer: Any) -> tuple[int, int]:
    """Return (words of kernels, neurons), padded to powers of two as DYNAP-CNN addresses them."""
    bits = lambda n: math.ceil(math.log2(max(n, 1)))  # noqa: E731
    before, after = _maps(subject, node), tuple(graph.info(node).shape[1:])
    kernel = before[1:] if isinstance(layer, nn.Linear) else pair(layer.kernel_size)
    return before[0] * 2 ** (bits(math.prod(kernel)) + bits(after[0])), after[0] * 2 ** sum(map(bits, after[1:]))


def _maps(subject: Subject, node: Node) -> tuple[int, ...]:
    """Return the shape [C, H, W] of what ``node`` reads, before it was flattened."""
    source = node.all_input_nodes[0]
    while isinstance(operator_of(subject.snn.body, source), Movement) and len(source.all_input_nodes) == 1:
        source = source.all_input_nodes[0]
    shape = tuple(graph.info(source).shape[1:])
    return (*shape, 1, 1)[:3]


def _readers(subject: Subject, node: Node) -> Iterator[Node]:
    """Iterate over the weight layers that read ``node``, through pools and the like."""
    for user in node.users:
        if isinstance(graph.module_of(subject.snn.body, user), WEIGHTS):
            yield user
        elif user.op != "output":
            yield from _readers(subject, user)


CORES: tuple[Rule, ...] = (cores, kernels_of_linear_layers, fan_outs)
