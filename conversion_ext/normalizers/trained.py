"""The thresholds that a network was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import GraphModule

from conversion_ext.errors import Problem, UnsupportedError
from conversion_ext.normalizers.base import Normalizer, register_normalizer
from conversion_ext.operators.sites import Site

if TYPE_CHECKING:
    from conversion_ext.calibration.statistics import ActivationStats

__all__ = ["Trained"]


@dataclass(frozen=True, kw_only=True)
class Trained(Normalizer):
    """``lambda`` = what the network was trained with: that of QCFS and SoftLIF, the cap of clipped ReLUs; no data.

    Use it when the network was trained with QCFS, SoftLIF or clipped ReLUs.

    Raises UnsupportedError naming every ReLU, which has neither.

    Reference: Bu et al., ICLR 2022; for clipped ReLUs Deng, Gu, ICLR 2021.
    """

    @property
    def needs_calibration(self) -> bool:
        """Whether activations must be observed: no."""
        return False

    def thresholds(
        self, model: GraphModule, sites: Sequence[Site], stats: Mapping[str, ActivationStats], levels: int | None
    ) -> dict[str, Tensor]:
        """Return {site key: cap}; what the modules themselves know is not asked here."""
        problems = tuple(
            Problem(
                site.key,
                "it has no threshold of its own.",
                "Train with conversion_ext.nn.QCFS or a clipped ReLU in its place, or use another normalizer such as "
                "Percentile().",
            )
            for site in sites
            if site.cap is None
        )
        if problems:
            listed = "\n".join(f"- {problem}" for problem in problems)
            raise UnsupportedError(f"Trained() finds no threshold:\n{listed}", problems)
        return {site.key: torch.tensor(float(site.cap), dtype=torch.float64) for site in sites if site.cap is not None}


register_normalizer("trained", Trained)
