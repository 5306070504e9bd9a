"""The tensors in the arguments of a network, however they are nested."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from conversion_ext.graph.structure import leaves_of, map_leaves

__all__ = ["tensors_of", "with_arrays_as_tensors"]


def tensors_of(arguments: Any) -> tuple[Tensor, ...]:
    """Return all tensors of nested tuples, lists and dicts, in order; arrays of numpy become tensors."""
    return tuple(torch.as_tensor(leaf) for leaf in leaves_of(arguments) if isinstance(leaf, Tensor | np.ndarray))


def with_arrays_as_tensors(arguments: Any) -> Any:
    """Return nested arguments with arrays of numpy as tensors."""
    return map_leaves(lambda leaf: torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf, arguments)
