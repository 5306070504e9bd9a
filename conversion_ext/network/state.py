"""The state of a network between calls: snapshot, restore, reset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext.errors import require
from conversion_ext.network.site import SpikingSite
from conversion_ext.nn.stateful import Memory, Stateful

__all__ = ["NetworkState", "reset", "rows_of"]


def reset(snn: nn.Module) -> None:
    """Forget every state of ``snn`` at every depth, and of no other network.

    Works for converted networks of each framework and for hand-written ones that hold conversion_ext.nn modules.
    """
    given = type(snn).__name__  # its repr takes longer than the reset
    require(isinstance(snn, nn.Module), f"reset was given a {given}; give a network, a torch.nn.Module.", TypeError)
    NetworkState(snn).reset()


def rows_of(index: Tensor, N: int, part: Tensor) -> Tensor:
    """Return the rows of ``part``, [N k, ...] of a batch of N, that belong to the samples ``index``."""
    k = len(part) // N
    return index if k == 1 else (index.unsqueeze(1) * k + torch.arange(k, device=index.device)).flatten()


class NetworkState:
    """The state of a network. It is collected by one walk over the modules, which takes as long as a step or two."""

    def __init__(self, snn: nn.Module) -> None:
        parts = list(snn.modules())
        self.sites = [part for part in parts if isinstance(part, SpikingSite)]
        self.others = [part for part in parts if isinstance(part, Memory)]

    def reset(self) -> None:
        """Forget the state."""
        for site in self.sites:
            site.restart()
        for module in self.others:
            module.reset()

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor, [N, ...] each, by ``change`` of it."""
        for site in self.sites:
            state = site.backend.state(site.neuron)
            if state is not None:
                new = tuple(change(part) for part in state)
                if any(a is not b for a, b in zip(new, state, strict=True)):
                    site.backend.set_state(site.neuron, new)
        for module in self.others:
            module.map_state(change)

    def snapshot(self) -> list[Any]:
        """Return the state, for ``restore``; tensors are not copied."""
        held = [{name: getattr(module, name) for name in module.state_fields} for module in self.others]
        return [*(site.backend.state(site.neuron) for site in self.sites), *held]

    def restore(self, kept: Sequence[Any]) -> None:
        """Give the network the state that ``snapshot`` returned."""
        self.reset()
        for site, state in zip(self.sites, kept, strict=False):
            if state is not None:
                site.backend.set_state(site.neuron, state)
        for module, held in zip(self.others, kept[len(self.sites) :], strict=True):
            for name, value in held.items():
                setattr(module, name, value)

    def select(self, index: Tensor, N: int) -> None:
        """Keep the state of some samples only: their numbers ``index`` [n] in the present batch of N."""

        def kept(part: Tensor) -> Tensor:
            rows = rows_of(index, N, part)
            return torch.index_select(part, 0, rows, out=torch.empty_like(part[: len(rows)]))

        self.apply(kept)
        self.resize(N, len(index))

    def resize(self, n: int, N: int) -> None:
        """Expect N samples in the place of n, after the tensors of the state were given as many."""
        for module in self.others:
            if isinstance(module, Stateful):
                module.resize(n, N)
