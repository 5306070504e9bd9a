"""One error tree and one form of messages: what was given, what is allowed, what to do."""

from __future__ import annotations

import importlib
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "BackendError",
    "CalibrationError",
    "ConversionError",
    "FileError",
    "MissingError",
    "Problem",
    "StateError",
    "UnknownNameError",
    "UnsupportedError",
    "optional_import",
    "require",
    "warn",
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


class MissingError(ConversionError):
    """A package or file that only some functions need is not there; the message holds the command to get it."""


class UnknownNameError(ConversionError, LookupError):
    """A name that no registry entry answers to."""


def require(condition: bool, message: str, error: type[Exception] = ValueError) -> None:
    """Raise ``error(message)`` unless ``condition`` holds: a check of user input in one line."""
    if not condition:
        raise error(message)


def optional_import(module: str, package: str, extra: str = "demo") -> Any:
    """Import a module of an extra of this package; raise MissingError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        message = f"{package} is not installed; install it with: pip install 'conversion-ext[{extra}]'"
        raise MissingError(message) from error


def warn(message: str) -> None:
    """Warn at the user's line: the innermost one that is no part of this package."""
    home, level, frame = str(Path(__file__).parent), 2, sys._getframe(1)  # noqa: SLF001 (inspect.stack reads sources)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(home):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
