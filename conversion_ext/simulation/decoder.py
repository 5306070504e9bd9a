"""Decode the output of a network while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from conversion_ext.graph.values import map_tensors, tensors_in, with_tensors
from conversion_ext.readouts.base import Readout

__all__ = ["Decoder"]

NONE = torch.empty(0)


class Decoder:
    """A readout at work on nested outputs, step by step: a cumulative sum would round differently."""

    def __init__(self, readout: Readout) -> None:
        self.readout = readout
        self.t = 0
        self.memories: list[tuple[Tensor, ...]] = []
        self.dtypes: list[torch.dtype] = []
        self.output: Any = None

    def steps(self, output: Any, K: int, block: int = 1) -> Iterator[int]:
        """Take up ``output`` [K*N, ...] step by step, each ``block`` times; yield t after each."""
        self.output = map_tensors(output, lambda _: NONE)  # its structure
        leaves = tensors_in(output)
        parts = [leaf.unflatten(0, (K, -1)) for leaf in leaves]
        for k in (k for k in range(K) for _ in range(block)):
            if self.t == 0:
                self.memories = [self.readout.begin(part[0]) for part in parts]
                self.dtypes = [part.dtype for part in parts]
            self.t += 1
            self.memories = [
                self.readout.step(memory, part[k], self.t) for memory, part in zip(self.memories, parts, strict=True)
            ]
            yield self.t

    def decode(self) -> list[Tensor]:
        """Return the tensors of the output after the steps so far."""
        pairs = zip(self.memories, self.dtypes, strict=True)
        return [self.readout.decode(memory, self.t).to(dtype) for memory, dtype in pairs]

    def keep(self, index: Tensor) -> None:
        """Go on with the samples ``index``."""
        self.memories = [tuple(part[index] for part in memory) for memory in self.memories]

    def nest(self, leaves: list[Tensor]) -> Any:
        """Put leaves back into the structure of the output."""
        return with_tensors(self.output, iter(leaves))
