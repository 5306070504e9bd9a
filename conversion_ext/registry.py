"""Named plug-in points: one small typed class, filled by decorators and by entry points."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from conversion_ext.errors import UnknownNameError, require

__all__ = ["PLUGIN_GROUP", "Registry", "class_of", "import_siblings", "load_plugins"]

PLUGIN_GROUP = "conversion_ext.plugins"
T = TypeVar("T")
_loaded: set[str] = set()


def class_of(base: type) -> Callable[[Any], bool]:
    """Return a test whether a value is a class derived from ``base``."""
    return lambda value: isinstance(value, type) and issubclass(value, base)


class Registry(Generic[T]):
    """Names to values of one kind; a duplicate or an unknown name raises and lists what there is.

    ``accepts`` tells whether a value can be an entry, ``wanted`` describes one. ``show`` returns what users call a key
    that is not a string: operators are registered by what is called.

    >>> shapes = Registry[int]("shape")
    >>> shapes.register("square", 4)
    4
    >>> shapes.names()
    ['square']
    """

    def __init__(
        self,
        kind: str,
        accepts: Callable[[Any], bool] = lambda value: True,
        wanted: str = "",
        show: Callable[[Any], str] | None = None,
    ) -> None:
        self.kind, self._accepts, self._wanted, self._named = kind, accepts, wanted, show is None
        self._show = str if show is None else show
        self._entries: dict[Any, T] = {}

    def register(self, name: Any, value: T) -> T:
        """Add ``value`` under ``name``, or under every name of a tuple, and return it."""
        require(self._accepts(value), f"The {self.kind} {name!r} is {value!r}; register {self._wanted}.", TypeError)
        require(isinstance(name, str) or not self._named, f"The {self.kind} {name!r}: a name is a string.", TypeError)
        for each in name if isinstance(name, tuple) else (name,):
            if each in self._entries:
                shown = self._show(each)
                raise ValueError(f"The {self.kind} {shown!r} is registered already; choose another name.")
            self._entries[each] = value
        return value

    def get(self, name: str) -> T:
        """Return the entry called ``name``."""
        load_plugins()
        if name not in self._entries:
            raise UnknownNameError(f"There is no {self.kind} named {name!r}; there are: {', '.join(self.names())}.")
        return self._entries[name]

    def find(self, name: Any) -> T | None:
        """Return the entry called ``name``, or None."""
        return self._entries.get(name)

    def names(self) -> list[str]:
        """Return all names, in order of registration."""
        load_plugins()
        return [self._show(name) for name in self._entries]

    def keys(self) -> dict[str, Any]:
        """Return {name: what was registered under it}: for operators the class, function or name of a method."""
        load_plugins()
        return {self._show(name): name for name in self._entries}

    def items(self) -> Iterator[tuple[str, T]]:
        """Iterate over (name, value)."""
        load_plugins()
        return iter([(self._show(name), value) for name, value in self._entries.items()])


def load_plugins() -> None:
    """Import what installed packages offer in the entry-point group ``conversion_ext.plugins``, once each."""
    for point in _plugins(tuple(sys.path)):
        if point.value not in _loaded:
            _loaded.add(point.value)
            plugin: Any = point.load()
            if callable(plugin):
                plugin()


@functools.lru_cache(maxsize=1)
def _plugins(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of all packages on ``path``: reading them takes milliseconds, asked for often."""
    return tuple(entry_points(group=PLUGIN_GROUP))


def import_siblings(package: str, path: list[str]) -> None:
    """Import every module of a package folder, so that no registration can be forgotten."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
