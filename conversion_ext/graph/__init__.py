"""Graphs of torch.fx: surgery, shapes, and what is known of a node."""

from __future__ import annotations

from conversion_ext.graph.surgery import (
    add_module,
    attribute_of,
    describe,
    insert_after,
    is_number,
    is_stock,
    key_of,
    module_of,
    modules_called,
    refresh,
    rename_free,
    replace_call,
)

__all__ = [
    "add_module",
    "attribute_of",
    "describe",
    "insert_after",
    "is_number",
    "is_stock",
    "key_of",
    "module_of",
    "modules_called",
    "refresh",
    "rename_free",
    "replace_call",
]
