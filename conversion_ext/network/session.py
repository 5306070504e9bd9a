"""What a run sets on the sites of a network while it owns the state of their neurons."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from conversion_ext.backends.base import lasting

__all__ = ["Room", "Session", "session"]

Room = Callable[[Any, Tensor, torch.dtype], Tensor]
"""Gives memory of a dtype, for what has a name, in the shape and layout of a tensor [N, ...]."""


def own_room(name: object, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return memory of its own."""
    return lasting(x, dtype)


@dataclass(frozen=True)
class Session:
    """A run that owns the state of the neurons: it may overwrite them, and needs no gradients.

    ``kernel``: ``advance`` or ``advance_compiled``, which updates the tensors of the framework in its place.
    ``counts``: where sites that ``counts_spikes`` add up their spikes [N, ...], under their keys: cheap while these are
    in the cache. None: nothing is counted. ``room`` gives memory for potentials and counts.
    ``fresh``: keys of sites whose input nobody else reads, so that spikes may take its place.
    """

    kernel: Callable[..., Any]
    counts: dict[str, Tensor] | None = None
    room: Room = own_room
    fresh: Collection[str] = ()


class _Site(Protocol):
    session: Session | None


@contextmanager
def session(
    sites: Iterable[_Site],
    kernel: Callable[..., Any],
    counts: dict[str, Tensor] | None = None,
    room: Room | None = None,
    fresh: Collection[str] = (),
) -> Iterator[None]:
    """Put ``sites`` into a session; without one they call the framework's own forward."""
    sites, own = list(sites), Session(kernel, counts, room or own_room, fresh)
    try:
        for site in sites:
            site.session = own
        yield
    finally:
        for site in sites:
            site.session = None
