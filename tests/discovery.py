"""Everything of a kind that the package defines, so that nothing new escapes the tests of its kind."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["currents", "values_of"]

Kind = TypeVar("Kind")


# What cannot be made without arguments, with those that it is made with.
ARGUMENTS = {"Population": {"classes": 5}}


def values_of(base: type[Kind]) -> dict[str, Kind]:
    """Return {name: value} of every class of the package derived from ``base``, but for bases in its own file."""
    found: dict[str, Kind] = {}
    left: list[type[Kind]] = [base]
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        ours = kind.__module__.startswith("conversion_ext.") and not kind.__name__.startswith("_")
        if ours and kind.__module__ != base.__module__:
            found[kind.__name__] = kind(**ARGUMENTS.get(kind.__name__, {}))
    return dict(sorted(found.items()))


def currents(T: int = 40) -> Tensor:
    """Currents on a grid of 1/16, so that sums are exact: negative, small, saturating, and from half of T on large."""
    x_seq = torch.randint(-16, 33, (T, 3, 4), generator=torch.Generator().manual_seed(0)).double() / 16
    return torch.cat([x_seq[: T // 2], 16 * x_seq[T // 2 :]])
