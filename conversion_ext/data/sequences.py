"""Event frames and other sequences: where the time axis is, and frames as samples of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext.data.batches import Forward, call_inputs, target_of
from conversion_ext.data.inputs import device_of
from conversion_ext.errors import CalibrationError, require, warn
from conversion_ext.graph.layers import CONVOLUTIONS

__all__ = ["FramesAsSamples", "Layout", "frames_as_samples", "layout_of", "sequence_layout", "time_axis", "time_first"]

Layout = bool | str | None
"""``True`` or "time_first": [T, N, ...]; "batch_first": [N, T, ...]; ``False``: no sequence; None: see the data."""


def sequence_layout(sequence: Layout) -> Layout:
    """Return a layout, checked."""
    require(
        sequence is None or isinstance(sequence, bool) or sequence in ("time_first", "batch_first"),
        f"sequence={sequence!r}: give True (or 'time_first') for frames [T, N, ...], 'batch_first' for [N, T, ...], "
        "or False for single inputs [N, ...].",
    )
    return "time_first" if sequence is True else sequence


def time_axis(x: Tensor, dims: int | None, samples: int | None, sequence: Layout, where: str) -> int | None:
    """Return which axis of ``x`` is time, 0 or 1, and None where ``x`` is no sequence.

    Without a layout an input with one dimension more than the network's ``dims`` is a sequence, and the axis as long
    as the target, ``samples``, is the batch.

    Raises CalibrationError where both axes could be the batch.
    """
    layout = sequence_layout(sequence)
    if layout is False or (layout is None and (dims is None or x.dim() != dims + 1)):
        return None
    require(
        dims is None or x.dim() == dims + 1,
        f"{where} has shape {list(x.shape)}; a sequence for this network has {(dims or 0) + 1} dimensions, "
        f"{'[N, T, ...]' if layout == 'batch_first' else '[T, N, ...]'}.",
        CalibrationError,
    )
    if layout is not None:
        return 1 if layout == "batch_first" else 0
    first, second = x.shape[0] == samples, x.shape[1] == samples
    require(
        first != second,
        f"{where} has shape {list(x.shape)}, one dimension more than the network's input: is it [T, N, ...] or "
        "[N, T, ...]? Pass sequence='time_first' or sequence='batch_first'.",
        CalibrationError,
    )
    return 1 if first else 0


def layout_of(data: Iterable[Any], model: nn.Module, forward: Forward | None) -> Layout:
    """Return the layout of batches with a dimension more than the model's first convolution takes, else None.

    Ask where the model does not take them; a warning tells what they are taken for. The targets tell which axis is the
    batch. Raises CalibrationError where they do not.
    """
    first = next(iter(data), None)
    convolution = next((module for module in model.modules() if isinstance(module, CONVOLUTIONS)), None)
    if first is None or convolution is None:
        return None
    inputs = call_inputs(first, forward)
    target = target_of(first, inputs)
    samples = len(target) if isinstance(target, Tensor) and target.dim() else None
    dims = 2 + len(convolution.kernel_size)
    if not inputs or not isinstance(inputs[0], Tensor):
        return None
    axis = time_axis(inputs[0], dims, samples, None, "The first calibration batch")
    layout = (None, "time_first", "batch_first")[0 if axis is None else axis + 1]
    if layout is not None:
        warn(f"The network takes single frames, so batches are read as sequences of them: sequence={layout!r}.")
    return layout


def time_first(inputs: tuple[Any, ...], axis: int, dtype: torch.dtype | None) -> tuple[Any, ...]:
    """Return inputs as [T, N, ...]; counts of events, which are integers, in ``dtype``."""

    def turned(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.movedim(axis, 0)
        return value if value.is_floating_point() or dtype is None else value.to(dtype)

    return tuple(turned(value) for value in inputs)


def frames_as_samples(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return sequences [T, N, ...] as [T*N, ...]: every frame a sample of its own."""
    return tuple(value.flatten(0, 1) if isinstance(value, Tensor) else value for value in inputs)


class FramesAsSamples:
    """Batches of sequences, read as batches of frames [T*N, ...]; every batch is a tuple of inputs."""

    def __init__(self, data: Iterable[Any], sequence: Layout, forward: Forward | None, model: nn.Module) -> None:
        self.data, self.sequence, self.forward = data, sequence_layout(sequence), forward
        self.device = device_of(model)
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for index, batch in enumerate(self.data):
            inputs = call_inputs(batch, self.forward, self.device)
            leading = next((value for value in inputs if isinstance(value, Tensor)), None)
            if leading is None or leading.dim() < 2:
                shape = None if leading is None else list(leading.shape)
                raise CalibrationError(f"Batch {index} has shape {shape}, and sequence= asks for frames [T, N, ...].")
            yield frames_as_samples(time_first(inputs, 1 if self.sequence == "batch_first" else 0, self.dtype))

    @staticmethod
    def call(model: Any, inputs: tuple[Any, ...]) -> Any:
        """Call a model on such a batch, as ``forward`` of :func:`convert` does."""
        return model(*inputs)
