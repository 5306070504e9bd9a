"""Options of a run, the same for every verb that runs a network."""

from __future__ import annotations

from typing import TypedDict

import torch

from conversion_ext.readouts.base import Readout
from conversion_ext.readouts.confidence import Confidence

__all__ = ["RunOptions"]


class RunOptions(TypedDict, total=False):
    """Options of :func:`conversion_ext.simulate`, where each is described, that other verbs hand on to it."""

    readout: Readout | None
    time_chunk: int | None
    block: int | None
    exit: Confidence | None
    dtype: str | torch.dtype | None
    weights: str | None
    compile: bool
    delay_per_layer: int
    generator: torch.Generator | None
