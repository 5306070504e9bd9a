"""What is done and what remains: bars, quiet in CI and in all processes but the first, and a log.

``logging.getLogger("conversion_ext")`` gets a message for what was made: a conversion, an epoch, a candidate. It is
silent until the user configures ``logging``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from operator import length_hint
from typing import Any

from torch import Tensor
from tqdm import tqdm

from conversion_ext.data.distributed import rank

__all__ = ["bar", "batches_in", "logger"]

logger = logging.getLogger("conversion_ext")
logger.addHandler(logging.NullHandler())


def bar(
    data: Iterable[Any] | None, description: str, shown: bool, total: float | None = None, **options: Any
) -> tqdm[Any]:
    """Return a bar over ``data``, or one to be updated up to ``total``; it is silent where CI is set.

    Args:
        data: what is iterated over; None for a bar that is updated by hand.
        description: what is done.
        shown: what a function was given as ``progress``.
        total: how much there is to do, by default the length of ``data``.
        options: further arguments of tqdm.
    """
    quiet = not shown or os.environ.get("CI", "").lower() not in ("", "0", "false") or rank() > 0
    return tqdm(data, description, total, disable=quiet, **options)


def batches_in(data: Any) -> int | None:
    """Return how many batches data holds, None where it does not tell; a tensor, or a tuple of them, is one."""
    return 1 if isinstance(data, (Tensor, tuple)) else length_hint(data, 0) or None
