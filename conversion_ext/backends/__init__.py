"""The frameworks a converted network can live in; importing this package imports none of them."""

from __future__ import annotations

from conversion_ext.backends.base import Backend, available, get_backend, register_backend
from conversion_ext.registry import import_siblings

__all__ = ["Backend", "available", "get_backend", "register_backend"]

import_siblings(__name__, list(__path__))
