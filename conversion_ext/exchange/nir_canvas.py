"""The NIR graph that is being written: nodes, edges, and what each node of a network is in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.errors import Problem, optional_import
from conversion_ext.exchange.readers import Reader

__all__ = ["Canvas", "Value", "numbers"]


@dataclass(frozen=True)
class Value:
    """What a node of the body is in NIR: the sum of what these nodes emit, ``1 / divisor`` of which is meant."""

    sources: tuple[str, ...]
    divisor: float = 1.0


class Canvas:
    """What was written so far of ``body`` for one reader; initial potentials go into biases of T steps, None: not."""

    def __init__(self, body: GraphModule, reader: Reader, T: int | None) -> None:
        self.body, self.reader, self.T = body, reader, T
        self.nir = optional_import("nir", "nir", "nir")
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.values: dict[Node, Value] = {}
        self.problems: list[Problem] = []
        self.typed = not reader.flattens_batch  # whether NIR's own check of shapes holds

    def problem(self, node: Node, reason: str, remedy: str) -> None:
        """Note why ``node`` cannot be written."""
        self.problems.append(Problem(graph.key_of(node), reason, remedy, graph.describe(node)))

    def shape(self, node: Node) -> tuple[int, ...]:
        """Return the shape of the value of ``node`` without the batch."""
        return tuple(graph.info(node).shape[1:])

    def add(self, node: Node, written: Any, sources: tuple[str, ...], suffix: str = "") -> Value:
        """Add a NIR node that reads ``sources`` and return its value."""
        name = graph.key_of(node).replace(".", "_").replace("#", "_") + suffix
        name = name if name.isidentifier() else "n" + "".join(c if c.isalnum() else "_" for c in name)
        while name in self.nodes:
            name += "_"
        written.metadata = {**(written.metadata or {}), "key": graph.key_of(node)}
        self.nodes[name] = written
        self.edges += [(source, name) for source in sources]
        return Value((name,))

    def settled(self, node: Node) -> Value:
        """Return the value of ``node`` without a divisor: where it has one, a scale is written."""
        value = self.values[node]
        if value.divisor != 1:
            factor = torch.tensor(1 / value.divisor)
            self.values[node] = self.scale(node, factor, value.sources, "_divided")
        return self.values[node]

    def scale(self, node: Node, factor: Tensor, sources: tuple[str, ...], suffix: str = "") -> Value:
        """Write a multiplication by ``factor`` [1, C, ...] as what the reader knows."""
        shape = self.shape(node)
        full = factor.detach().float().expand(1, *shape)[0]
        if self.reader.scales:
            return self.add(node, self.nir.Scale(numbers(full.contiguous())), sources, suffix)
        channels = full.flatten(1)[:, 0] if full.dim() > 1 else full
        if not bool((full == channels.reshape(-1, *[1] * (full.dim() - 1))).all()):
            self.problem(node, "it scales every element by itself.", "Scale channels only.")
        return self.diagonal(node, channels, shape, sources, suffix)

    def diagonal(self, node: Node, gains: Tensor, shape: tuple[int, ...], sources: Any, suffix: str) -> Value:
        """Write a weight layer that multiplies each channel by its own number."""
        weight, bias = torch.diag(gains), torch.zeros(len(gains))
        if len(shape) == 1:
            return self.add(node, self.nir.Affine(numbers(weight), numbers(bias)), sources, suffix)
        kernel = [1] * (len(shape) - 1)
        weight = weight.reshape(*weight.shape, *kernel)
        return self.add(node, self.convolution(shape[1:], weight, bias, [1], [0], [1], 1), sources, suffix)

    def convolution(
        self, size: Any, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Any:
        """Return a Conv1d or Conv2d of NIR."""
        dims = weight.dim() - 2
        if groups > 1 and not self.reader.groups:
            weight, groups = _dense(weight, groups), 1
        bias = torch.zeros(len(weight)) if bias is None else bias
        whole = [tuple(v * dims if len(v) == 1 else v) for v in (list(stride), list(padding), list(dilation))]
        if dims == 1:
            single = [v[0] for v in whole]
            return self.nir.Conv1d(size[0], numbers(weight), *single, groups, numbers(bias))
        self.typed &= groups == 1  # nir 1.0.8 takes the inputs of a group for all of them
        return self.nir.Conv2d(tuple(size), numbers(weight), *whole, groups, numbers(bias))


def _dense(weight: Tensor, groups: int) -> Tensor:
    """Return the weight of an ungrouped convolution that does what ``weight`` [O, I / groups, ...] does in groups."""
    out, each = len(weight) // groups, weight.shape[1]
    dense = weight.new_zeros(len(weight), each * groups, *weight.shape[2:])
    for g in range(groups):
        dense[g * out : (g + 1) * out, g * each : (g + 1) * each] = weight[g * out : (g + 1) * out]
    return dense


def numbers(tensor: Tensor) -> np.ndarray:
    """Return the numbers of a tensor, in memory of their own."""
    return tensor.detach().cpu().numpy().copy()
