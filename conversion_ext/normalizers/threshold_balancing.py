"""Local threshold balancing: thresholds that grow with what exceeds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from conversion_ext.errors import CalibrationError, require
from conversion_ext.exact import state_dtype
from conversion_ext.normalizers.base import Normalizer, of_site, positive, register_normalizer
from conversion_ext.operators.sites import Site
from conversion_ext.types import Granularity, PerChannel

__all__ = ["ThresholdBalancing"]


@dataclass(frozen=True, kw_only=True)
class ThresholdBalancing(Normalizer):
    """``lambda <- lambda + 2 mean(max(a - lambda, 0))`` for every batch, from 0: descent on the clipping error.

    Use it to compare with local threshold balancing; it takes many batches.

    Each batch goes on clipped at the new lambda, so that a layer sees what the thresholds before it let through. A
    threshold only grows, and stops where nothing exceeds it: the number of batches is the regularizer (the authors
    run 1,000 to 5,000 of 100 images), and ``passes`` runs the calibration data several times. The outcome depends on
    the batches and their order, not on T.

    Reference: Bu, Li, Yu, CVPR 2025.
    """

    granularity: Granularity = field(default=PerChannel())
    passes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            isinstance(self.passes, int) and not isinstance(self.passes, bool) and self.passes >= 1,
            f"ThresholdBalancing(passes={self.passes!r}): the data is run an integer number of times >= 1.",
        )

    @property
    def runs(self) -> int:
        """How many times the calibration data is run."""
        return self.passes

    def statistics(self, site: Site) -> Balance:
        """Return the growing threshold of a site."""
        return Balance(site.key, self.granularity)

    def thresholds(
        self, model: GraphModule, sites: Sequence[Site], stats: Mapping[str, Any], levels: int | None
    ) -> dict[str, Tensor]:
        """Return {site key: threshold} in the order of ``sites``."""
        raw = {site.key: of_site(stats, site).threshold() for site in sites}
        return positive(raw, sites, "Not active on the calibration data")


class Balance:
    """The threshold of one site while the data is run."""

    def __init__(self, key: str, granularity: Granularity) -> None:
        self.key = key
        self.granularity = granularity
        self.dim = granularity.dim if isinstance(granularity, PerChannel) else None
        self.value: Tensor | None = None  # with as many dimensions as activations have

    def see(self, x: Tensor, a: Tensor) -> Tensor:
        """Let the threshold grow with the activations ``a`` [N, ...] and return them clipped at it."""
        a = a.clamp_min(0).to(state_dtype(a.dtype))
        kept = () if self.dim is None else (self.dim % a.dim(),)
        others = [d for d in range(a.dim()) if d not in kept]
        before = torch.zeros((), dtype=a.dtype, device=a.device) if self.value is None else self.value
        self.value = before + 2 * (a - before).clamp_min(0).mean(others, keepdim=True)
        require(
            bool(torch.isfinite(self.value).all()),
            f"The activations of {self.key} hold NaN or infinite values; check the calibration data and the weights.",
            CalibrationError,
        )
        return torch.minimum(a, self.value).to(x.dtype)

    def threshold(self) -> Tensor:
        """Return the threshold, [] or [C] float64."""
        if self.value is None:
            raise CalibrationError(f"{self.key} saw no activation; pass calibration data that reaches it.")
        flat = self.value.double().reshape(-1)
        return flat[0] if self.dim is None else flat


register_normalizer("threshold_balancing", ThresholdBalancing)
