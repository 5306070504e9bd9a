"""One error tree and one way to say what is wrong: what was given, what is allowed, what to do."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "BackendError",
    "CalibrationError",
    "ConversionError",
    "FileError",
    "Problem",
    "StateError",
    "UnknownNameError",
    "UnsupportedError",
    "require",
]


@dataclass(frozen=True)
class Problem:
    """One obstacle to a conversion: where (module path, user's source line), why, and what to do."""

    path: str
    reason: str
    remedy: str
    line: str = ""

    def __str__(self) -> str:
        where = f"{self.path} ({self.line})" if self.line else self.path
        return f"{where}: {self.reason} {self.remedy}"


class ConversionError(Exception):
    """A network or request that cannot be converted; ``problems`` lists every obstacle found."""

    def __init__(self, message: str, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class UnsupportedError(ConversionError):
    """The network holds something that no registered operator covers."""


class CalibrationError(ConversionError, ValueError):
    """The calibration data is missing, empty, or holds values that are not numbers."""


class BackendError(ConversionError, ImportError):
    """A framework is not installed, or lacks what the recipe asks of it."""


class FileError(ConversionError, ValueError):
    """A file that is not one of ``save``, was changed, or cannot hold what it was given."""


class StateError(ConversionError, RuntimeError):
    """A neuron met an input that does not fit the state of its running simulation."""


class UnknownNameError(ConversionError, LookupError):
    """A name that no registry entry answers to."""


def require(condition: bool, message: str, error: type[Exception] = ValueError) -> None:
    """Raise ``error(message)`` unless ``condition`` holds: a check of user input in one line."""
    if not condition:
        raise error(message)
