"""Zeros that are padded on one side more than on the other, without a copy of what they surround."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.backends.base import is_hooked
from conversion_ext.graph.layers import CONVOLUTIONS, zeros_around

__all__ = ["without_padding"]


class Padded(nn.Module):
    """A convolution that pads ``margins``, the zeros before and behind each dimension, the last one first.

    It pads as many on both sides, and zeros in its kernel stand before what it would otherwise see too early. That is
    exact, and cheap where a kernel sees one channel. Hooks of a user on padding or convolution make it call both.
    """

    def __init__(self, pad: nn.Module | None, conv: Any, margins: list[tuple[int, int]]) -> None:
        super().__init__()
        self.pad, self.conv, self.margins = pad, conv, margins
        steps = reversed(conv.dilation)
        taps = [((b - a) // d, 0) if b > a else (0, (a - b) // d) for (a, b), d in zip(margins, steps, strict=True)]
        self.taps = [n for pair in taps for n in pair]
        self.convolve = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}[type(conv)]
        self.padding = tuple(max(pair) + own for pair, own in zip(reversed(margins), conv.padding, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the convolution makes of x with zeros around it."""
        conv = self.conv
        if is_hooked(conv) or (self.pad is not None and is_hooked(self.pad)):
            return conv(F.pad(x, [n for pair in self.margins for n in pair]) if self.pad is None else self.pad(x))
        weight = F.pad(conv.weight, self.taps)
        return self.convolve(x, weight, conv.bias, conv.stride, self.padding, conv.dilation, conv.groups)


def without_padding(body: GraphModule) -> GraphModule:
    """Let depthwise convolutions of ``body``, which is changed, pad what is padded for them alone."""
    found = [(node, padded) for node in body.graph.nodes if (padded := _padded(body, node)) is not None]
    for node, padded in found:
        (reader,) = node.users
        body.set_submodule(str(reader.target), padded)
        node.replace_all_uses_with(node.all_input_nodes[0])
        body.graph.erase_node(node)
    if found:  # which takes as long as a step or two
        body.recompile()
    return body


def _padded(body: GraphModule, node: Node) -> Padded | None:
    """Return the convolution that pads in the place of ``node``, None where it does not pad or is read otherwise."""
    pad = graph.module_of(body, node)
    zeros = zeros_around(node, pad)
    if zeros is None or len(node.users) != 1:
        return None
    (reader,) = node.users
    conv: Any = graph.module_of(body, reader)
    called_once = sum(other.target == reader.target for other in body.graph.nodes) == 1
    if type(conv) not in CONVOLUTIONS or conv.groups != conv.in_channels or not called_once:
        return None
    dims = len(conv.dilation)
    margins = [*zeros, *[(0, 0)] * dims][:dims]
    whole = all((b - a) % d == 0 for (a, b), d in zip(margins, reversed(conv.dilation), strict=True))
    plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and not any(map(any, zeros[dims:]))
    return Padded(pad, conv, margins) if whole and plain else None
