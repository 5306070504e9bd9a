"""Exact rewrites of the captured ANN, and the order in which they run."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule

from conversion_ext.capture.batch import batch_problems, mark_batch_sizes
from conversion_ext.capture.passes.activations import Activations
from conversion_ext.capture.passes.attention import OpenAttentionCalls
from conversion_ext.capture.passes.base import Pass, passes, refused, register_pass
from conversion_ext.capture.passes.batch_first import BatchFirst
from conversion_ext.capture.passes.batch_size import BatchSize
from conversion_ext.capture.passes.flatten import Flattening
from conversion_ext.capture.passes.fold_batch_norm import FoldBatchNorm
from conversion_ext.capture.passes.fold_constants import FoldConstants
from conversion_ext.capture.passes.fold_padding import FoldPadding
from conversion_ext.capture.passes.functional_layers import FunctionalLayers
from conversion_ext.capture.passes.merge_activations import MergeActivations
from conversion_ext.capture.passes.out_of_place import OutOfPlace
from conversion_ext.capture.passes.remove_noops import RemoveNoops
from conversion_ext.capture.passes.unshare import Unshare
from conversion_ext.errors import ConversionError, UnsupportedError
from conversion_ext.graph.shapes import propagate

__all__ = ["Pass", "batch_problems", "passes", "register_pass", "run_passes"]

register_pass("out_of_place", OutOfPlace())  # first: the others take every edge for a value
register_pass("fold_constants", FoldConstants())
register_pass("attention", OpenAttentionCalls())
register_pass("activations", Activations())
register_pass("functional_layers", FunctionalLayers())
register_pass("batch_first", BatchFirst())
register_pass("batch_size", BatchSize())
register_pass("flatten", Flattening())
register_pass("unshare", Unshare())
register_pass("remove_noops", RemoveNoops())
register_pass("fold_padding", FoldPadding())
register_pass("fold_batch_norm", FoldBatchNorm())
register_pass("merge_activations", MergeActivations())


def run_passes(model: GraphModule, example: Any = None) -> None:
    """Rewrite a captured network in place with all registered passes; its function stays the same.

    With an ``example`` (a tensor [N, ...] or a tuple of inputs) shapes are known, which some rewrites need, and
    every node has ``meta["shape"]``, for one sample. Raises UnsupportedError with everything that a pass refused,
    after all passes have run.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    if example is not None:
        propagate(model, inputs, values=False)
        mark_batch_sizes(model, inputs)
    for name, rewrite in passes.items():
        rewrite.run(model)
        broken = rewrite.ensures(model)
        if broken:
            raise ConversionError(f"The pass {name!r} broke its promise, please report it: {' '.join(broken)}")
    problems = refused(model)
    if problems:
        raise UnsupportedError("; ".join(map(str, problems)), problems)
    if example is not None:
        propagate(model, inputs, values=False)
