"""Reading what users hand over as data, over one or several processes; small real data sets to try things on."""

from __future__ import annotations

from conversion_ext.data.datasets import load

__all__ = ["load"]
