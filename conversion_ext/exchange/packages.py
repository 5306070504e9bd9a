"""Packages that only the exchange with other tools needs, imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any

from conversion_ext.errors import BackendError

__all__ = ["package"]


def package(name: str, extra: str = "nir") -> Any:
    """Return the installed package ``name``; raise BackendError that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendError(
            f'This needs the package {name}, which is not installed: run pip install "conversion-ext[{extra}]".'
        ) from error
