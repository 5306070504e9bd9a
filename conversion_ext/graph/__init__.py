"""Graphs of torch.fx: surgery, evaluation, what is known of a node, and families of torch.nn layers."""

from __future__ import annotations

from conversion_ext.graph.evaluation import call, constant, inputs_of, output_of, steps_of, varying
from conversion_ext.graph.node_info import NodeInfo, carry, describe, info, key_of, note
from conversion_ext.graph.surgery import (
    add_module,
    attribute_of,
    insert_after,
    is_number,
    is_stock,
    may_hold_data,
    module_of,
    modules_called,
    refresh,
    rename_free,
    replace_call,
)
from conversion_ext.graph.values import map_sizes

__all__ = [
    "NodeInfo",
    "add_module",
    "attribute_of",
    "call",
    "carry",
    "constant",
    "describe",
    "info",
    "inputs_of",
    "insert_after",
    "is_number",
    "is_stock",
    "key_of",
    "map_sizes",
    "may_hold_data",
    "module_of",
    "modules_called",
    "note",
    "output_of",
    "refresh",
    "rename_free",
    "replace_call",
    "steps_of",
    "varying",
]
