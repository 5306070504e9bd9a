"""What a network receives at each time step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from conversion_ext.encoders.base import Encoder
from conversion_ext.errors import require
from conversion_ext.network.spiking_network import SpikingNetwork, fold_time
from conversion_ext.types import Steps

__all__ = ["Presentation", "Reader", "encoded", "frames", "means"]


def encoded(
    encoder: Encoder, inputs: Sequence[Any], T: int, generator: torch.Generator | None
) -> Callable[[int, int], tuple[Any, ...]]:
    """Return a reader ``(first step, number of steps K) -> inputs [K, N, ...]``, to be called in order.

    Inputs that are not floating-point tensors are no currents and are handed on as they are.
    """
    noise = generator or torch.Generator().manual_seed(0)
    streams = [
        encoder.encode(repeat(x, T), T, noise) if isinstance(x, Tensor) and x.is_floating_point() else None
        for x in inputs
    ]

    def read(first: int, K: int) -> tuple[Any, ...]:
        # Step by step through all inputs, or the noise of each would depend on K.
        pairs = list(zip(inputs, streams, strict=True))
        steps = [[x if stream is None else next(stream) for x, stream in pairs] for _ in range(K)]
        columns = zip(*steps, strict=True)
        return tuple(torch.stack(column) if isinstance(column[0], Tensor) else column[0] for column in columns)

    return read


Reader = Callable[[int, int], tuple[Any, ...]]
"""``(first step, number of steps K) -> inputs [K, N, ...]``, to be called in order."""


def frames(inputs: tuple[Any, ...], T: int | None = None) -> Reader:
    """Return a reader of sequences [T, N, ...]; raise where they hold fewer than T steps."""
    length = min(len(value) for value in inputs if isinstance(value, Tensor))
    require(T is None or length >= T, f"T={T}, but the sequence holds {length} steps; give T <= {length}.")
    return lambda first, K: tuple(v[first : first + K] if isinstance(v, Tensor) else v for v in inputs)


def means(read: Reader, block: int) -> Reader:
    """Return a reader of the means of blocks, given one of single steps."""

    def mean(x_seq: Any) -> Any:
        floating = not isinstance(x_seq, Tensor) or x_seq.is_floating_point()
        require(floating, f"block={block} takes means over time, of which an input of integers has none; use block=1.")
        return x_seq.unflatten(0, (-1, block)).mean(1) if isinstance(x_seq, Tensor) else x_seq

    return read if block == 1 else lambda first, K: tuple(mean(v) for v in read(first * block, K * block))


class Presentation:
    """A batch as the network receives it: T steps, in blocks of K, through the recipe's encoder.

    ``sequence``: the inputs are frames [T, N, ...] already.
    """

    def __init__(
        self,
        snn: SpikingNetwork,
        inputs: tuple[Any, ...],
        T: int,
        block: int,
        generator: torch.Generator,
        sequence: bool = False,
    ) -> None:
        encoder = snn.conversion.recipe.encoder
        self.inputs, self.T, self.block = inputs, T, block
        if sequence:
            self.read: Reader | None = frames(inputs, T)
        else:
            self.read = None if encoder.constant else encoded(encoder, inputs, T, generator)

    def steps(self, first: int, count: int, block: int) -> tuple[tuple[Any, ...], Steps]:
        """Return ``count`` steps (or blocks), to be called in order: inputs for ``SpikingNetwork.run``, and steps."""
        if self.read is None:
            return self.inputs, Steps(count, constant=True, block=block)
        frames = means(self.read, block)(first, count)
        return tuple(fold_time(v) for v in frames), Steps(count, block=block)
