"""The data of a training: batches to learn from, and others that judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset, TensorDataset

from conversion_ext.data.batches import batches
from conversion_ext.errors import CalibrationError, require

__all__ = ["Placed", "divide"]

BATCH = 64
HELD_OUT, MOST = 10, 5000  # one of ten samples judges, but no more than these


class Placed:
    """Labelled batches on a device, as often as they are asked for."""

    def __init__(self, data: Any, device: torch.device) -> None:
        self.data, self.device = data, device
        self.generator: torch.Generator | None = getattr(data, "generator", None)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for batch in self.data:
            require(
                isinstance(batch, (tuple, list)) and len(batch) >= 2,
                f"A batch is a {type(batch).__name__} without a target; fine-tuning needs (input, target) batches.",
                CalibrationError,
            )
            pair: Any = batch
            x, target = pair[:2]
            parts = tuple(_to(part, self.device) for part in x) if isinstance(x, tuple) else _to(x, self.device)
            yield parts, _to(target, self.device)

    def __len__(self) -> int:
        return len(self.data)


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def divide(loader: Any, validation: Any, seed: int) -> tuple[Any, Any]:
    """Return (batches to learn from, batches that judge), both with a length.

    Without ``validation`` every tenth sample of a data set (of at most 5,000), or every tenth batch of a list, judges.
    """
    data: Any = batches(loader, "loader")
    if validation is not None:
        batches(validation, "validation")
        if isinstance(validation, tuple) and len(validation) == 2 and isinstance(validation[0], Tensor):
            validation = DataLoader(TensorDataset(*validation), BATCH)
    if isinstance(loader, tuple) and data != loader and len(loader) == 2:  # tensors (inputs, targets)
        data = DataLoader(TensorDataset(*loader), BATCH, shuffle=True)
    require(
        hasattr(data, "__len__") and len(data) > 0,
        f"loader is a {type(loader).__name__} of unknown length or empty; give a DataLoader over a data set that has a "
        "length, a list of batches, or a pair of tensors (inputs, targets).",
        CalibrationError,
    )
    if isinstance(data, Sequence):
        order = _order(len(data), seed)
        judges = max(1, len(data) // HELD_OUT)
        require(
            validation is not None or len(data) > 1,
            "The loader holds one batch, and one more is needed to judge; give more, or validation=.",
            CalibrationError,
        )
        kept = order[judges:] if validation is None else range(len(data))
        learned: Any = DataLoader([data[i] for i in kept], batch_size=None, shuffle=True)  # type: ignore[arg-type]
        return learned, validation if validation is not None else [data[i] for i in order[:judges]]
    return (data, validation) if validation is not None else _divide_set(data, seed)


def _divide_set(loader: Any, seed: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return two loaders over parts of the data set of a stock DataLoader."""
    stock = type(loader) is DataLoader and type(loader.sampler) in (RandomSampler, SequentialSampler)
    data: Any = loader.dataset if stock else ()
    require(
        stock and loader.batch_size is not None and len(data) > 1,
        f"loader is a {type(loader).__name__} that cannot be divided (a plain DataLoader over two samples or more can, "
        "without a sampler of its own); give validation=, labelled batches that are not in it.",
        CalibrationError,
    )
    order = _order(len(data), seed)
    judges = min(MOST, max(1, len(order) // HELD_OUT))
    options: dict[str, Any] = {
        name: getattr(loader, name)
        for name in ("batch_size", "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator")
    }
    shuffle = type(loader.sampler) is RandomSampler
    return (
        DataLoader(Subset(data, order[judges:]), shuffle=shuffle, drop_last=loader.drop_last, **options),
        DataLoader(Subset(data, sorted(order[:judges])), **options),
    )


def _order(count: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
