"""What a run sets on the sites of a network while it owns the state of their neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

__all__ = ["Session", "session"]


@dataclass(frozen=True)
class Session:
    """A run that owns the state of the neurons: it may overwrite them, and needs no gradients.

    ``kernel``: ``advance`` or ``advance_compiled``, which updates the tensors of the framework in its place.
    ``counts``: where sites that ``counts_spikes`` add up their spikes [N, ...], under their keys: cheap while these are
    in the cache. None: nothing is counted.
    """

    kernel: Callable[..., Any]
    counts: dict[str, Tensor] | None = None


class _Site(Protocol):
    session: Session | None


@contextmanager
def session(
    sites: Iterable[_Site], kernel: Callable[..., Any], counts: dict[str, Tensor] | None = None
) -> Iterator[None]:
    """Put ``sites`` into a session; without one they call the framework's own forward."""
    sites, own = list(sites), Session(kernel, counts)
    try:
        for site in sites:
            site.session = own
        yield
    finally:
        for site in sites:
            site.session = None
