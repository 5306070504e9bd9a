"""The data of a training: batches to learn from, and others that judge."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset, TensorDataset

from conversion_ext.data.batches import batches
from conversion_ext.data.sequences import Layout
from conversion_ext.errors import CalibrationError, require
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.simulation.samples import Batch, batches_of, is_tensor_pair

__all__ = ["Placed", "divide"]

BATCH = 64
HELD_OUT, MOST = 10, 5000  # one of ten samples judges, but no more than these
# Of the options of a DataLoader those that belong to the whole data set, not to its parts.
OWN = ("self", "dataset", "batch_size", "shuffle", "sampler", "batch_sampler", "drop_last")


class Placed:
    """Batches on a device, as a network is given them, as often as they are asked for."""

    def __init__(self, snn: SpikingNetwork, data: Any, device: torch.device, sequence: Layout = None) -> None:
        self.snn, self.data, self.device, self.sequence = snn, data, device, sequence
        self.generator: torch.Generator | None = getattr(data, "generator", None)

    def __iter__(self) -> Iterator[Batch]:
        return batches_of(self.snn, self.data, "loader", targets=True, sequence=self.sequence, device=self.device)

    def __len__(self) -> int:
        return len(self.data)


def divide(loader: Any, validation: Any, seed: int) -> tuple[Any, Any]:
    """Return (batches to learn from, batches that judge), both with a length.

    Without ``validation`` every tenth sample of a data set (of at most 5,000), or every tenth batch of a list, judges.
    """
    data: Any = batches(_as_set(loader, "loader", shuffle=True), "loader")
    if validation is not None:
        validation = batches(_as_set(validation, "validation", shuffle=False), "validation")
    require(
        hasattr(data, "__len__") and len(data) > 0,
        f"loader is a {type(loader).__name__} of unknown length or empty; give a DataLoader over a data set that has a "
        "length, a list of batches, a tensor of inputs, or a pair of tensors (inputs, targets).",
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


def _as_set(data: Any, what: str, shuffle: bool) -> Any:
    """Return tensors as a DataLoader, other data as it is."""
    tensors = (data,) if isinstance(data, Tensor) else data if is_tensor_pair(data) else None
    if tensors is None:
        return data
    shape = list(tensors[0].shape)
    require(tensors[0].numel() > 0, f"{what} is empty: shape {shape}.", CalibrationError)
    return DataLoader(TensorDataset(*tensors), BATCH, shuffle=shuffle)


def _divide_set(loader: Any, seed: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return two loaders over parts of the data set of a stock DataLoader, with all its other options."""
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
    names = (name for name in inspect.signature(DataLoader.__init__).parameters if name not in OWN)
    options: dict[str, Any] = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    options["batch_size"] = loader.batch_size
    shuffle = type(loader.sampler) is RandomSampler
    return (
        DataLoader(Subset(data, order[judges:]), shuffle=shuffle, drop_last=loader.drop_last, **options),
        DataLoader(Subset(data, sorted(order[:judges])), **options),
    )


def _order(count: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
