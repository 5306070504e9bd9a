"""Keep a converted network in a file, and hand it to other tools."""

from __future__ import annotations

from conversion_ext.exchange.files import load, save

__all__ = ["load", "save"]
