"""What a converted network leaves and enters by: files."""

from __future__ import annotations

from conversion_ext.exchange.files import load, save

__all__ = ["load", "save"]
