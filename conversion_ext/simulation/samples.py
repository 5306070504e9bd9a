"""Data as a converted network is given it: inputs, targets and sequences, read as its conversion read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conversion_ext.data.batches import batches, call_inputs, check_inputs, target_of
from conversion_ext.data.inputs import device_of, streamed
from conversion_ext.data.sequences import Layout, frames_as_samples, time_axis, time_first
from conversion_ext.errors import CalibrationError, require
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.types import whole

__all__ = ["Batch", "Samples", "batches_of", "is_tensor_pair", "require_network", "require_steps", "steps_to_try"]


@dataclass(frozen=True)
class Batch:
    """One batch: ``inputs`` [N, ...] each, or [T, N, ...] where ``sequence``; ``target`` of the data, or None."""

    inputs: tuple[Any, ...]
    target: Any = None
    sequence: bool = False

    def __len__(self) -> int:
        """The number of samples."""
        return next(v.shape[1 if self.sequence else 0] for v in self.inputs if isinstance(v, Tensor))

    def samples(self) -> tuple[Any, ...]:
        """Return inputs [N, ...], every frame of a sequence a sample of its own."""
        return frames_as_samples(self.inputs) if self.sequence else self.inputs

    def mean(self) -> tuple[Any, ...]:
        """Return inputs [N, ...], of a sequence the mean over its frames."""
        if not self.sequence:
            return self.inputs
        return tuple(v.mean(0) if isinstance(v, Tensor) and v.is_floating_point() else v for v in self.inputs)

    def labelled(self, verb: str = "evaluation") -> Any:
        """Return the target; raise where there is none."""
        require(
            self.target is not None,
            f"A batch is a {type(self.inputs[0]).__name__} without a target; {verb} needs (input, target) batches.",
            CalibrationError,
        )
        return self.target


class Samples:
    """The inputs of the batches of ``data``, [N, ...] each, as often as they are asked for; frames are samples."""

    def __init__(self, snn: SpikingNetwork, data: Any, sequence: Layout = None) -> None:
        self.snn, self.data, self.sequence = snn, data, sequence

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return (batch.samples() for batch in batches_of(self.snn, self.data, sequence=self.sequence))

    @staticmethod
    def call(model: Any, inputs: tuple[Any, ...]) -> Any:
        """Call a model on such inputs, as ``forward`` of :func:`convert` does."""
        return model(*inputs)


def require_network(snn: Any) -> SpikingNetwork:
    """Return ``snn``; raise TypeError if it is not a converted network."""
    require(
        isinstance(snn, SpikingNetwork),
        f"snn is a {type(snn).__name__}; pass what conversion_ext.convert returned.",
        TypeError,
    )
    return snn


def require_steps(T: Any) -> int:
    """Return the number of time steps; raise ValueError where it is none."""
    number = whole(T)
    require(number is not None and number >= 1, f"T={T!r}: the number of time steps is an integer >= 1.")
    assert number is not None
    return number


def steps_to_try(T: Any) -> tuple[int, ...]:
    """Return several numbers of time steps in ascending order; one number stands for itself."""
    require(not isinstance(T, str), f"T={T!r}: name numbers of time steps such as (4, 8, 16).")
    steps = (T,) if whole(T) is not None else tuple(T)
    require(bool(steps), "T=(): name at least one number of time steps.")
    return tuple(sorted({require_steps(t) for t in steps}))


def is_tensor_pair(data: Any) -> bool:
    """Whether ``data`` is a pair of tensors of one length: (inputs, targets) where targets are asked for."""
    pair = isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    return pair and data[0].dim() > 0 and data[1].dim() > 0 and len(data[0]) == len(data[1])


def batches_of(
    snn: SpikingNetwork,
    data: Any,
    what: str = "data",
    *,
    targets: bool = False,
    sequence: Layout = None,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """Yield the batches of ``data``, checked: a tensor, a pair (inputs, targets), or an iterable of batches.

    The ``forward`` and ``sequence`` of the conversion define how a batch is read; ``sequence`` overrides the latter.
    With ``targets`` a pair of tensors is one labelled batch, whatever its targets look like.
    """
    require_network(snn)
    options = snn.record.options
    count = len(snn.input_shapes())
    several = count > 1 and isinstance(data, tuple) and len(data) == count and not targets
    source: Iterable[Any]
    if several and options.forward is None and all(isinstance(value, Tensor) for value in data):
        source = [(data,)]  # the inputs of one call
    else:
        source = [data] if targets and is_tensor_pair(data) else batches(data, what)
    for index, batch in enumerate(source):
        yield _batch(snn, batch, f"Batch {index}", options.sequence if sequence is None else sequence, device)


def _batch(snn: SpikingNetwork, batch: Any, where: str, sequence: Layout, device: torch.device | None) -> Batch:
    if isinstance(batch, Batch):  # read already
        return batch
    inputs = call_inputs(batch, snn.record.options.forward)
    target = target_of(batch, inputs)  # which is told from the inputs by identity
    inputs, target = streamed((inputs, target), device_of(snn) if device is None else device)
    leading = next((value for value in inputs if isinstance(value, Tensor)), None)
    samples = len(target) if isinstance(target, Tensor) and target.dim() else None
    known = snn.input_shapes()[0]
    dims = None if known is None else len(known)
    axis = None if leading is None else time_axis(leading, dims, samples, sequence, where)
    if axis is not None:
        parameter = next((p for p in snn.parameters() if p.is_floating_point()), None)
        inputs = time_first(inputs, axis, None if parameter is None else parameter.dtype)
    check_inputs(inputs, snn, where)
    return Batch(inputs, target, axis is not None)
