"""Exact rewrites of the captured ANN, run in the order in which they are imported here."""

# isort: off  (the order of these imports is the order of the passes)
from __future__ import annotations

from typing import Any

from torch.fx import GraphModule

from conversion_ext.errors import ConversionError, UnsupportedError
from conversion_ext.passes.base import Pass, passes, refused, register_pass
from conversion_ext.passes import out_of_place as out_of_place
from conversion_ext.passes import fold_constants as fold_constants
from conversion_ext.passes import activations as activations
from conversion_ext.passes import functional_layers as functional_layers
from conversion_ext.passes.batch_size import batch_problems, mark_batch_sizes
from conversion_ext.passes import flatten as flatten
from conversion_ext.passes import unshare as unshare
from conversion_ext.passes import remove_noops as remove_noops
from conversion_ext.passes import fold_batch_norm as fold_batch_norm
from conversion_ext.passes import merge_activations as merge_activations
from conversion_ext.shapes import propagate
# isort: on

__all__ = ["Pass", "batch_problems", "passes", "register_pass", "run_passes"]


def run_passes(model: GraphModule, example: Any = None) -> None:
    """Rewrite a captured network in place with all registered passes; its function stays the same.

    With an ``example`` (a tensor [N, ...] or a tuple of inputs) shapes are known, which some rewrites need, and
    every node has ``meta["shape"]``, for one sample. Raises UnsupportedError with everything that a pass refused,
    after all passes have run.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    if example is not None:
        propagate(model, inputs)
        mark_batch_sizes(model, inputs)
    for name, rewrite in passes.items():
        rewrite.run(model)
        broken = rewrite.ensures(model)
        if broken:
            raise ConversionError(f"The pass {name!r} broke its promise, please report it: {' '.join(broken)}")
    if example is not None:
        propagate(model, inputs)
    problems = refused(model)
    if problems:
        raise UnsupportedError("; ".join(map(str, problems)), problems)
