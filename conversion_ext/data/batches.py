"""Reading what users hand over as data: tensors, loaders, batches with targets, dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conversion_ext.data.inputs import Arguments, streamed, tensors_of, with_arrays_as_tensors
from conversion_ext.errors import CalibrationError, require

__all__ = ["Forward", "as_inputs", "batches", "call_inputs", "check_inputs", "labelled", "model_input", "target_of"]

Forward = Callable[[Any, Any], Any]
CPU = torch.device("cpu")
INPUT_KEYS = ("input", "inputs", "image", "images", "img", "x", "data", "pixel_values")
TARGET_KEYS = ("target", "targets", "label", "labels", "y", "mask", "masks")


def batches(data: Any, what: str = "calibration") -> Iterable[Any]:
    """Return ``data`` as a re-iterable of batches; a tensor, or (input, target) tensors, is one batch."""
    if isinstance(data, np.ndarray):
        return [torch.as_tensor(data)]
    _require_one_target_each(data, what)
    if isinstance(data, Tensor) or _is_labelled_pair(data):
        return [data]
    if isinstance(data, Iterator):
        raise CalibrationError(
            f"{what} is a one-shot iterator ({type(data).__name__}), but data may be read more than once; "
            "pass a DataLoader, a list of batches or a tensor."
        )
    if isinstance(data, Mapping) or not hasattr(data, "__iter__"):
        raise CalibrationError(
            f"{what} is a {type(data).__name__}; pass a tensor, or an iterable of batches such as a DataLoader."
        )
    return data


def model_input(batch: Any) -> Any:
    """Return the network's input of a batch: the tensor itself, the first of (input, target), or a known key."""
    if isinstance(batch, Mapping):
        key = next((k for k in INPUT_KEYS if k in batch), None)
        if key is None:
            raise CalibrationError(
                f"A batch is a dict with keys {sorted(map(str, batch))}, none of them one of {', '.join(INPUT_KEYS)}; "
                "pass forward=lambda model, batch: model(batch[...])."
            )
        return batch[key]
    if isinstance(batch, (tuple, list)):
        require(len(batch) > 0, "A batch is an empty tuple; pass tensors or (input, target).", CalibrationError)
        return batch[0]
    return batch


def as_inputs(value: Any) -> tuple[Any, ...]:
    """Return the positional inputs that ``value`` stands for: a tuple (or list) of several, or one."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def target_of(batch: Any, inputs: tuple[Any, ...] = ()) -> Any:
    """Return the target of a batch, None where there is none.

    It is what a dict holds under a known key, or what follows the input in a tuple, ``inputs`` of the network left out.
    """
    if isinstance(batch, Mapping):
        return next((batch[k] for k in TARGET_KEYS if k in batch), None)
    if isinstance(batch, (tuple, list)):
        return next((part for part in batch[1:] if not any(part is value for value in inputs)), None)
    return None


def labelled(data: Any, forward: Forward | None = None) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Iterate over (inputs, target); raise where a batch has no target.

    A pair of tensors of one length is one batch here, whatever the target looks like.
    """
    paired = isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    for batch in [data] if paired and len(data[0]) == len(data[1]) else batches(data, "loader"):
        inputs = call_inputs(batch, forward)
        target = target_of(batch, inputs)
        if target is None:
            raise CalibrationError(
                f"A batch is a {type(batch).__name__} without a target; evaluation needs (input, target) batches."
            )
        yield inputs, target


def call_inputs(batch: Any, forward: Forward | None, device: torch.device = CPU) -> tuple[Any, ...]:
    """Return the inputs with which ``forward`` calls the network on ``batch``, streamed to its ``device``.

    Arrays become tensors.
    """
    if forward is None:
        return streamed(with_arrays_as_tensors(as_inputs(model_input(batch))), device)
    seen: list[Arguments] = []

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(Arguments((*args, *kwargs.values()), tuple(kwargs)))
        raise _Seen

    try:
        forward(spy, batch)
    except _Seen:
        return Arguments(streamed(with_arrays_as_tensors(tuple(seen[0])), device), seen[0].keywords)
    raise ValueError("forward=(model, batch) must call model(...) once; it returned without calling it.")


def check_inputs(inputs: tuple[Any, ...], model: nn.Module, where: str) -> None:
    """Raise one sentence where ``inputs`` cannot be run: no tensors, empty, wrong device or dtype, not finite."""
    parameter = next(model.parameters(), None)
    tensors = tensors_of(inputs)
    if not tensors:
        kinds = " and ".join(sorted({type(value).__name__ for value in inputs}))
        raise CalibrationError(
            f"{where} is a {kinds}; the network's input must be a tensor [N, ...], or nested tuples, lists and dicts "
            "of tensors (for several inputs use forward=lambda model, batch: model(*batch))."
        )
    require(
        parameter is None or not parameter.is_meta,
        "The network is on the meta device, where it has no weights; load them before anything else.",
        CalibrationError,
    )
    for value in tensors:
        require(
            value.dim() > 0,
            f"{where} holds a number without a batch, shape []; give every input as a tensor [N, ...].",
            CalibrationError,
        )
        require(not value.is_complex(), f"{where} is {value.dtype}; spikes carry real numbers.", CalibrationError)
        require(value.numel() > 0, f"{where} is empty: shape {list(value.shape)}.", CalibrationError)
        if parameter is not None and value.device != parameter.device:
            raise CalibrationError(
                f"{where} is on {value.device}, the network on {parameter.device}; move one to the other's device."
            )
        if parameter is not None and value.is_floating_point() and value.dtype != parameter.dtype:
            raise CalibrationError(
                f"{where} is {value.dtype}, the network {parameter.dtype}; convert one to the other."
            )
        if parameter is not None and not value.is_floating_point() and len(tensors) == 1 and not _looks_up(model):
            raise CalibrationError(f"{where} is {value.dtype}; scale it to {parameter.dtype} as in training.")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CalibrationError(f"{where} holds values that are NaN or infinite; clean the data.")


def _looks_up(model: nn.Module) -> bool:
    """Return whether a network takes indices somewhere."""
    return any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in model.modules())


class _Seen(Exception):  # noqa: N818  control flow, never leaves this file
    """The spy was called."""


def _require_one_target_each(data: Any, what: str) -> None:
    """Raise for a pair of inputs and of targets of another number; two batches of inputs differ in nothing else."""
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) and part.dim() for part in data):
        inputs, targets = data
        require(
            len(inputs) == len(targets) or inputs.shape[1:] == targets.shape[1:],
            f"{what} holds {len(inputs)} inputs and {len(targets)} targets; give one target for each input.",
            CalibrationError,
        )


def _is_labelled_pair(data: Any) -> bool:
    return (
        isinstance(data, tuple)
        and len(data) == 2
        and all(isinstance(part, Tensor) for part in data)
        and data[1].dim() >= 1
        and len(data[0]) == len(data[1])
        and (not data[1].is_floating_point() or data[1].shape[1:] != data[0].shape[1:])  # else two batches
    )
