"""Where a training runs, and how it survives: one process or what ``accelerate`` makes of several; checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from conversion_ext.data.distributed import processes
from conversion_ext.errors import require
from conversion_ext.exact import bytes_of
from conversion_ext.graph.values import tensors_in

__all__ = [
    "SingleProcess",
    "accelerator_or_single",
    "check_writable",
    "data_digest",
    "load_checkpoint",
    "name_of",
    "save_checkpoint",
    "tensor_digest",
]

KEYS = {
    "run",
    "student",
    "optimizer",
    "scaler",
    "history",
    "chosen",
    "random",
    "order",
    "samples",
    "number",
    "step",
    "factor",
}


class SingleProcess:
    """What training needs of an ``accelerate.Accelerator``, in one process and where the network is."""

    is_main_process = True
    sync_gradients = True
    scaler: Any = None

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def prepare(self, *objects: Any) -> tuple[Any, ...]:
        """Return the objects."""
        return objects

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the loss."""
        loss.backward()

    def clip_grad_norm_(self, parameters: Any, max_norm: float) -> None:
        """Shorten the gradient."""
        nn.utils.clip_grad_norm_(parameters, max_norm)


def accelerator_or_single(accelerator: Any, device: torch.device) -> Any:
    """Return the accelerator given, or ``SingleProcess``; a duck, since accelerate is optional."""
    if accelerator is None:
        require(
            processes() == 1,
            f"{processes()} processes train together only through accelerate: pass "
            "Training(accelerator=accelerate.Accelerator()) "
            '(pip install "conversion-ext[accelerate]").',
        )
        return SingleProcess(device)
    require(
        all(hasattr(accelerator, name) for name in ("prepare", "backward", "clip_grad_norm_", "is_main_process")),
        f"accelerator={accelerator!r}: give an accelerate.Accelerator(), or None.",
        TypeError,
    )
    return accelerator


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` so that ``path`` always holds a whole checkpoint, whenever the process is killed."""
    part = _part(path)
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def check_writable(path: Path) -> None:
    """Raise ValueError where a checkpoint cannot be written to ``path``."""
    part = _part(path)
    try:
        require(not path.is_dir(), f"checkpoint={str(path)!r} is a folder; name a file.")
        with part.open("ab"):
            pass
        part.unlink()
    except OSError as error:
        raise ValueError(
            f"checkpoint={str(path)!r} cannot be written ({error.strerror}); name a file in a folder that exists and "
            "that you may write to."
        ) from error


def load_checkpoint(path: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state at ``path``, None if there is none; raise ValueError where it is not that of this ``run``."""
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as parts:  # torch.load compares no checksums
            damaged = parts.testzip() is not None
        state: Any = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # an empty, damaged or foreign file fails in many ways, with advice for other purposes
        state = None
    require(
        isinstance(state, dict) and state.keys() >= KEYS and isinstance(state["run"], dict),
        f"checkpoint={str(path)!r} is no checkpoint of finetune(): it is empty, damaged or another kind of file; "
        "delete it, or name another file.",
    )
    other = [name for name, value in run.items() if state["run"].get(name) != value]
    require(
        not other,
        f"checkpoint={str(path)!r} belongs to a run with another {', '.join(other)}; delete it, or name another file.",
    )
    return state


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def tensor_digest(tensors: Iterable[Tensor]) -> str:
    """Return a digest of the values of tensors, in order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def name_of(value: Any) -> str:
    """Return a description of a value or function that is the same in every process: no addresses."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = (f"{f.name}={name_of(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{type(value).__qualname__}({', '.join(parts)})"
    if isinstance(value, functools.partial):
        return f"partial({name_of(value.func)}, {value.args!r}, {value.keywords!r})"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def data_digest(data: Any) -> str:
    """Return a digest of what identifies data: its length, and some items where the first is the same twice.

    Items with random augmentation differ each time they are read; of those only shapes count.
    """
    dataset: Any = data.dataset if isinstance(data, DataLoader) else data
    try:
        first, second = dataset[0], dataset[0]
    except (TypeError, KeyError, IndexError, NotImplementedError):  # no indices: a stream or another kind of loader
        return f"{type(dataset).__name__}, {len(data)}"
    one, two = (tensor_digest(_tensors(item)) for item in (first, second))
    shapes = [list(tensor.shape) for tensor in _tensors(first)]
    some = [dataset[place * (len(dataset) - 1) // 4] for place in range(5)] if one == two else []
    digest = tensor_digest(tensor for item in some for tensor in _tensors(item))
    return f"{len(dataset)}, {len(data)}, {digest if some else shapes}"


def _tensors(item: Any) -> list[Tensor]:
    parts = item if isinstance(item, tuple | list) else [item]
    numbers = [torch.as_tensor(part) for part in parts if isinstance(part, bool | int | float)]
    return [*tensors_in(item), *numbers]
