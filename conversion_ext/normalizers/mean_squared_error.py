"""The threshold with the least quantization error for a given number of steps."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.normalizers.base import Normalizer, register_normalizer
from conversion_ext.types import Granularity, PerChannel

if TYPE_CHECKING:
    from conversion_ext.calibration.statistics import ActivationStats

__all__ = ["MeanSquaredError"]

# Candidates, in units of the power of two just below the largest activation, which is in [1, 2).
CANDIDATES = 2.0 ** torch.arange(-6, 1, 0.01, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class MeanSquaredError(Normalizer):
    """``lambda`` minimizes ``E[(a - q(a))^2]``, ``q(a) = lambda/n clamp(floor(n a / lambda + offset), 0, n)``.

    Use it when T is known and small.

    ``offset = 1/2`` rounds, as neurons with ``v_init = 1/2`` do for constant current; 0 floors (``v_init = 0``, and
    Li et al.). The expectation is over the recorded distribution, the search over candidates 0.7 % apart; n is
    T of :func:`conversion_ext.convert` times the spikes of a step. Thresholds grow with n, towards the maximum.

    Reference: Li, Deng, Dong, Gong, Gu, ICML 2021 (a grid of 95 candidates, flooring, on batches).
    """

    granularity: Granularity = field(default=PerChannel())
    offset: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.offset < 1, f"MeanSquaredError(offset={self.offset!r}): it is the initial potential, in [0, 1)."
        )

    @property
    def needs_T(self) -> bool:
        """Whether the number of time steps must be known."""
        return True

    def threshold(self, stats: ActivationStats, levels: int | None) -> Tensor:
        """Return the best candidate, [] or [C]; 0 where no activation was positive."""
        assert levels is not None
        values, counts, scale = stats.bins()
        # What is so small that every candidate rounds it to 0 tells none from another.
        first = int(torch.searchsorted(values, float(CANDIDATES[0]) / levels * (1 - self.offset)))
        errors = _errors(tuple(values[first:].tolist()), levels, self.offset).to(values.device)
        error = counts[:, first:].double() @ errors  # one product for all channels and candidates
        candidates = CANDIDATES.to(values.device)
        best = torch.where(stats.dead.reshape(-1), 0.0, candidates[error.argmin(1)] * scale)
        return best.reshape(stats.maximum.shape)


@functools.lru_cache(maxsize=1)
def _errors(values: tuple[float, ...], levels: int, offset: float) -> Tensor:
    """Return the squared error of each value for each candidate; most sites of a network ask for the same."""
    x, step = torch.tensor(values, dtype=torch.float64)[:, None], CANDIDATES / levels
    return (x - torch.floor(x / step + offset).clamp_(0, levels) * step).square_()


register_normalizer("mean_squared_error", MeanSquaredError)
