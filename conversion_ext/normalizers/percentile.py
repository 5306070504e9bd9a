"""Normalization by a percentile of the activations: robust to outliers."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING

from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.normalizers.base import Normalizer, register_normalizer
from conversion_ext.types import Granularity, PerChannel

if TYPE_CHECKING:
    from conversion_ext.calibration.statistics import ActivationStats

__all__ = ["Percentile"]


@dataclass(frozen=True)
class Percentile(Normalizer):
    """``lambda`` = the ``p``-th percentile of all activations seen: clips the top 100 - p per cent.

    Use it when T is not known: it suits any number of steps from about 32.

    >>> Percentile(99.9)
    Percentile(granularity=PerChannel(dim=1), p=99.9, positive_only=False)

    ``positive_only`` takes it over positive activations only, as Rueckauer's toolbox does; by default zeros count,
    as with Hu et al. and in SpikingJelly, and the same p gives a smaller threshold. Where a channel is active so
    seldom that its percentile is 0, its maximum is used.

    Reference: Rueckauer et al., Front. Neurosci. 2017, 11:682 (robust normalization, p = 99.9).
    """

    p: float = 99.9
    granularity: Granularity = field(default=PerChannel(), kw_only=True)
    positive_only: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            isinstance(self.p, Real) and not isinstance(self.p, bool) and 0 < self.p <= 100,
            f"Percentile(p={self.p!r}): p must be a number in (0, 100]; 100 is the maximum.",
        )

    def threshold(self, stats: ActivationStats, levels: int | None) -> Tensor:
        """Return the percentile, [] or [C]; 0 where too few activations are positive."""
        return stats.quantile(self.p, self.positive_only)


register_normalizer("percentile", Percentile)
