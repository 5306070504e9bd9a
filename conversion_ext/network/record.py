"""What was done to a network: recipe, thresholds, and a table of what every site and weight layer sees."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__all__ = ["Record", "Widths", "installed_versions"]


@dataclass(frozen=True)
class Widths:
    """The bits of a network in integers, and whether potentials stop at the end of theirs (else that is an error)."""

    weight: int
    state: int
    input: int
    saturate: bool = False

    @property
    def exponent(self) -> int:
        """The threshold is 2 to this: half of a potential's bits say how fine it is, the others how far it goes."""
        return self.state // 2


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

    def plain(self) -> dict[str, Any]:
        """Return the record as strings, numbers and lists."""
        facts = asdict(self)
        facts.pop("recipe_value")
        return {k: list(v) if isinstance(v, tuple) else v for k, v in facts.items()}


def installed_versions(*packages: str) -> dict[str, str]:
    """Return {package: version} of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
