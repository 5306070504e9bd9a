"""The tensors of a file: each once, under the name of its first place, with what else makes it the same tensor."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from conversion_ext.errors import FileError, require

__all__ = ["Facts", "Tensors"]


class Facts(TypedDict, total=False):
    """What a tensor is beside its numbers; what is left out is False, or as torch lays a new tensor out."""

    parameter: bool
    requires_grad: bool
    stride: list[int]


class Tensors:
    """Tensors by name: ``data`` lies in the file one after another, ``facts`` in its header."""

    def __init__(self, data: dict[str, Tensor] | None = None, facts: dict[str, Facts] | None = None) -> None:
        self.data: dict[str, Tensor] = {} if data is None else data
        self.facts: dict[str, Facts] = {} if facts is None else facts
        self._names: dict[int, str] = {}
        self._made: dict[str, Tensor] = {}

    def name_of(self, tensor: Tensor, wish: str = "constant") -> str:
        """Return the name of ``tensor``, which is kept under ``wish`` or the next free name where it is new."""
        if id(tensor) not in self._names:
            name, count = wish, 1
            while name in self.data:
                count += 1
                name = f"{wish}.{count}"
            self._names[id(tensor)] = name
            data = tensor.detach().cpu().contiguous()
            self.data[name] = data.clone() if data.data_ptr() == tensor.data_ptr() else data  # one memory each
            self._made[name] = tensor  # alive, so that no other takes its id
            self.facts[name] = _facts(tensor)
        return self._names[id(tensor)]

    def named(self, name: str) -> Tensor:
        """Return the tensor of this name, the same object each time."""
        if name not in self._made:
            require(name in self.data, f"it holds no tensor {name!r}.", FileError)
            self._made[name] = _restored(self.data[name], self.facts.get(name, {}))
        return self._made[name]


def _facts(tensor: Tensor) -> Facts:
    """Return what ``_restored`` needs: the order in memory decides which kernel adds in which order."""
    facts: Facts = {}
    if isinstance(tensor, nn.Parameter):
        facts["parameter"] = True
        if tensor.requires_grad:
            facts["requires_grad"] = True
    dense = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1 == tensor.numel()
    if dense and tensor.stride() != torch.empty(tensor.shape, device="meta").stride():
        facts["stride"] = list(tensor.stride())
    return facts


def _restored(data: Tensor, facts: Facts) -> Tensor:
    if "stride" in facts:
        stride = facts["stride"]
        reach = sum((n - 1) * s for n, s in zip(data.shape, stride, strict=True))
        require(0 <= reach < max(data.numel(), 1), f"strides {stride} do not fit {list(data.shape)}.", FileError)
        data = torch.empty_strided(data.shape, stride, dtype=data.dtype).copy_(data)
    if facts.get("parameter"):
        return nn.Parameter(data, requires_grad=bool(facts.get("requires_grad")))
    return data
