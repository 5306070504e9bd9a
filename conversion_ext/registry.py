"""Named plug-in points: one small typed class, filled by decorators and by entry points."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from conversion_ext.errors import UnknownNameError

__all__ = ["PLUGIN_GROUP", "Registry", "import_siblings", "load_plugins"]

PLUGIN_GROUP = "conversion_ext.plugins"
T = TypeVar("T")
_loaded: set[str] = set()


class Registry(Generic[T]):
    """Names to values of one kind; a duplicate or an unknown name raises and lists what there is.

    >>> shapes = Registry[int]("shape")
    >>> shapes.register("square", 4)
    4
    >>> shapes.names()
    ['square']
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str, value: T) -> T:
        """Add ``value`` under ``name`` and return it."""
        if name in self._entries:
            raise ValueError(f"A {self.kind} named {name!r} is registered already; choose another name.")
        self._entries[name] = value
        return value

    def decorator(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers what it decorates under ``name``."""
        return lambda value: self.register(name, value)

    def get(self, name: str) -> T:
        """Return the entry called ``name``."""
        load_plugins()
        if name not in self._entries:
            raise UnknownNameError(f"There is no {self.kind} named {name!r}; there are: {', '.join(self.names())}.")
        return self._entries[name]

    def names(self) -> list[str]:
        """Return all names, in order of registration."""
        load_plugins()
        return list(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        """Iterate over (name, value)."""
        load_plugins()
        return iter(list(self._entries.items()))


def load_plugins() -> None:
    """Import what installed packages offer in the entry-point group ``conversion_ext.plugins``, once each."""
    for point in entry_points(group=PLUGIN_GROUP):
        if point.value not in _loaded:
            _loaded.add(point.value)
            plugin: Any = point.load()
            if callable(plugin):
                plugin()


def import_siblings(package: str, path: list[str]) -> None:
    """Import every module of a package folder, so that no registration can be forgotten."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
