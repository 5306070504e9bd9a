"""Normalization by the largest activation seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from conversion_ext.normalizers.base import Normalizer, register_normalizer

if TYPE_CHECKING:
    from conversion_ext.calibration.statistics import ActivationStats

__all__ = ["Maximum"]


@dataclass(frozen=True, kw_only=True)
class Maximum(Normalizer):
    """``lambda = max a`` over all calibration data, exactly: nothing seen is clipped.

    Use it when nothing may be clipped and steps are plenty: with few steps it rounds coarsely.

    The price is resolution: one outlier makes all other firing rates small, so many steps are needed.

    Reference: Diehl et al., IJCNN 2015 (data-based normalization, its activation term).
    """

    def threshold(self, stats: ActivationStats, levels: int | None) -> Tensor:
        """Return the largest activation, [] or [C]."""
        return stats.maximum


register_normalizer("maximum", Maximum)
