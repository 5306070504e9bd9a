"""Where ``load`` was at first: data sets live in ``conversion_ext.data``."""

from __future__ import annotations

from conversion_ext.data.datasets import DATASETS, Dataset, load

__all__ = ["DATASETS", "Dataset", "load"]
