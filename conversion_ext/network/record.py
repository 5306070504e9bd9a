"""What was done to a network: recipe, thresholds, and a table of what every site and weight layer sees."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__all__ = ["Options", "Record", "Widths", "installed_versions"]


@dataclass(frozen=True)
class Widths:
    """The bits of a network in integers, and whether potentials stop at the end of theirs (else that is an error)."""

    weight: int
    state: int
    input: int
    saturate: bool = False
    threshold: int | None = None
    even: bool = False

    @property
    def exponent(self) -> int:
        """The threshold is 2 to this, by default half of a potential's bits: how fine it is, and how far it goes."""
        return self.state // 2 if self.threshold is None else self.threshold


@dataclass(frozen=True)
class Options:
    """How ``convert`` read the network and its data, for later verbs that read the ANN or data in the same way."""

    skip: tuple[str, ...] = ()
    leaf: tuple[Any, ...] = ()
    graded: bool = True
    relay: bool = False
    forward: Any = None
    sequence: bool | str | None = None

    def arguments(self) -> dict[str, Any]:
        """Return them as arguments of ``convert``."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def plain(self) -> dict[str, Any]:
        """Return them as strings and truth values; a ``forward`` function is left out."""
        leaf = [kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}" for kind in self.leaf]
        return {
            "skip": list(self.skip), "leaf": leaf, "graded": self.graded, "relay": self.relay,
            "sequence": self.sequence,
        }  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> Options:
        return self  # nothing in it changes

    def __getstate__(self) -> dict[str, Any]:
        """Leave out a function that cannot be pickled, such as a lambda."""
        return {**self.__dict__, "forward": self.forward if _is_picklable(self.forward) else None}


@dataclass(frozen=True)
class Record:
    """Plain facts of one conversion, kept in the state dict."""

    recipe: str
    T: int | None
    backend: str
    folded: bool
    samples: int
    sites: tuple[str, ...]
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    recipe_value: Any = None
    widths: Widths | None = None
    options: Options = field(default_factory=Options)

    def plain(self) -> dict[str, Any]:
        """Return the record as strings, numbers and lists."""
        facts = asdict(replace(self, recipe_value=None, options=Options()))
        del facts["recipe_value"]
        facts["options"] = self.options.plain()
        return {k: list(v) if isinstance(v, tuple) else v for k, v in facts.items()}


def _is_picklable(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def installed_versions(*packages: str) -> dict[str, str]:
    """Return {package: version} of those that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
