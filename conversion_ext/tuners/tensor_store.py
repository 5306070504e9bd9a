"""Tensors kept by name: in memory up to a budget, beyond it in a temporary folder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Shelf"]

BUDGET = 2 << 30  # bytes in memory before tensors go to disk


class Shelf:
    """A mapping of keys to tensors whose memory is bounded by ``budget`` bytes; what exceeds it lies in a file each.

    >>> with Shelf(budget=0) as shelf:
    ...     shelf["a"] = torch.arange(3)
    ...     shelf["a"].tolist(), len(shelf), shelf.held
    ([0, 1, 2], 1, 0)
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget = budget
        self.held = 0
        self._entries: dict[Any, Tensor | Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        self._entries.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def __setitem__(self, key: Any, value: Tensor) -> None:
        self.pop(key)
        size = value.numel() * value.element_size()
        if self.held + size <= self.budget:
            self.held += size
            self._entries[key] = value
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="conversion_ext")
        self._files += 1
        path = Path(self._folder.name) / f"{self._files}.pt"
        torch.save(value.clone(), path)  # a view would be written with all of its storage
        self._entries[key] = path

    def __getitem__(self, key: Any) -> Tensor:
        entry = self._entries[key]
        return torch.load(entry, weights_only=True) if isinstance(entry, Path) else entry

    def __contains__(self, key: Any) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def pop(self, key: Any) -> None:
        """Forget ``key`` if it is there, and free what it took."""
        entry = self._entries.pop(key, None)
        if isinstance(entry, Path):
            entry.unlink()
        elif entry is not None:
            self.held -= entry.numel() * entry.element_size()
