"""What files call classes and their parts: as releases wrote them, whatever the code calls them today.

Who renames a class, a field of a value, or an attribute or buffer of a module adds a line; files keep the old name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["class_name", "parts_read", "parts_written"]

CLASSES: dict[str, str] = {}
"""{name in the code: name in files}, ``{"Site": "SpikingSite"}``."""

PARTS: dict[str, dict[str, str]] = {"Stepping": {"lag_steps": "wait"}, "SpikingSite": {"session": "owner"}}
"""{class in files: {name in the code: name in files}}, ``{"SpikingSite": {"constant_input": "static_input"}}``.

A line of a base class holds for all that derive from it.
"""


def class_name(cls: type) -> str:
    """Return what files call ``cls``."""
    return CLASSES.get(cls.__name__, cls.__name__)


def parts_written(cls: type, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``parts`` of an object of ``cls`` under the names that files give them."""
    names = _names(cls)
    return {names.get(name, name): part for name, part in parts.items()}


def parts_read(cls: type, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``parts`` of a file under the names that the code of ``cls`` gives them."""
    names = {in_files: in_code for in_code, in_files in _names(cls).items()}
    return {names.get(name, name): part for name, part in parts.items()}


def _names(cls: type) -> dict[str, str]:
    names: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        names |= PARTS.get(class_name(base), {})
    return names
