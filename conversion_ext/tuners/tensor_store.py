"""Tensors kept by name: in memory up to a budget, beyond it in a temporary folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conversion_ext.errors import CalibrationError
from conversion_ext.tuners.memory import resident, trim

__all__ = ["TensorStore", "pack", "unpack"]

BUDGET = 1 << 29  # bytes in memory before tensors go to disk


class TensorStore:
    """A mapping of keys to tensors whose memory is bounded by ``budget`` bytes; what exceeds it lies in a file each.

    >>> with TensorStore(budget=0) as store:
    ...     store["a"] = torch.arange(3)
    ...     store["a"].tolist(), len(store), store.held
    ([0, 1, 2], 1, 0)
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget = budget
        self.held = 0
        # Bytes of the process beyond which free memory goes back: when it is asked to, and while tensors come in.
        self._limit = self._most = resident() + 2 * budget
        self._entries: dict[Any, Tensor | Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def __enter__(self) -> TensorStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._entries.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def __setitem__(self, key: Any, value: Tensor) -> None:
        self.pop(key)
        if resident() > self._most:
            self._trim()
        if self.fits(value):
            self.held += _size(value)
            self._entries[key] = value
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="conversion_ext")
        self._files += 1
        path = Path(self._folder.name) / f"{self._files}.pt"
        compact = value.clone()  # a view would be written with all of its storage
        try:
            torch.save(compact, path)
        except (OSError, RuntimeError) as error:  # the latter, with a number of a position, where the disk is full
            raise CalibrationError(
                f"Calibration keeps what does not fit into memory in {path.parent} and could not write there; "
                f"{shutil.disk_usage(path.parent).free >> 20:,} MiB are free. Give fewer samples, or a folder with "
                "more room in the environment variable TMPDIR."
            ) from error
        self._entries[key] = path

    def __getitem__(self, key: Any) -> Tensor:
        entry = self._entries[key]
        return torch.load(entry, weights_only=True) if isinstance(entry, Path) else entry

    def __contains__(self, key: Any) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def fits(self, value: Tensor) -> bool:
        """Return whether ``value`` can still be kept in memory."""
        return self.held + _size(value) <= self.budget

    def pop(self, key: Any) -> None:
        """Forget ``key`` if it is there, and free what it took."""
        entry = self._entries.pop(key, None)
        if isinstance(entry, Path):
            entry.unlink()
        elif entry is not None:
            self.held -= _size(entry)

    def give_back(self) -> None:
        """Give free memory back to the system, if the process has grown far beyond what is kept here."""
        if resident() > self._limit:
            self._trim()

    def _trim(self) -> None:
        """Give free memory back; what is left is in use: the next time is when there is more by half of the budget."""
        trim()
        self._most = max(self._limit, resident() + self.budget // 2)


def pack(spikes: Tensor) -> Tensor:
    """Return spikes [T, ...] in {0, 1} as bits: [ceil(T / 8), ...] uint8, step t in bit t % 8 of byte t // 8."""
    packed = _steps(-(-len(spikes) // 8), spikes[0], torch.uint8)
    for byte, steps in zip(packed, spikes.split(8), strict=True):
        byte.copy_(steps[0])
        for place, step in enumerate(steps[1:], start=1):
            byte.bitwise_or_(step.to(torch.uint8) << place)
    return packed


def unpack(packed: Tensor, T: int, dtype: torch.dtype) -> Tensor:
    """Return the spikes [T, ...] of which ``pack`` made bits."""
    spikes = _steps(T, packed[0], dtype)
    for t, step in enumerate(spikes):
        step.copy_((packed[t // 8] >> t % 8) & 1)
    return spikes


def _steps(count: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return room for ``count`` tensors one behind the other, each laid out in memory as ``like``."""
    strides = torch.empty_like(like, device="meta").stride()  # those of a dense tensor, also where ``like`` is a view
    return torch.empty_strided((count, *like.shape), (like.numel(), *strides), dtype=dtype, device=like.device)


def _size(value: Tensor) -> int:
    return value.numel() * value.element_size()
