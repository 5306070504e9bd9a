"""Statistics of the activations of one site."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Protocol

import torch
from torch import Tensor

from conversion_ext.calibration.histogram import Bins, Histogram, as_channels, check_channels
from conversion_ext.errors import CalibrationError, require
from conversion_ext.types import Granularity, PerChannel, PerLayer

__all__ = ["ActivationStats", "Statistics"]


class Statistics(Protocol):
    """What is known of a site; it takes up every call of the site's activation."""

    def see(self, x: Tensor, a: Tensor) -> Tensor | None:
        """Take up input ``x`` and output ``a``, both [N, ...]; return what goes on in the place of a, None for a."""
        ...


class ActivationStats:
    """The whole distribution of ``max(x, 0)``, or of ``|x|``, at one site: per layer [] or per channel [C].

    Maximum and minimum are exact. A quantile is within 0.1 % of the exact one over all data; per channel this ends 23
    octaves (7 decades) below the channel's maximum, and what is smaller is reported as about 2^-23 of that. Equal
    activations give bit-identical statistics for any order, batch size and split over processes. Memory: 48 KiB per
    channel (1.04 GiB for all 22,720 of a ResNet-50), or 0.5 MiB per layer; half of it up to 2^15 activations of each
    channel (1.5 GiB for the 64,512 of a ViT-B/16), and twice beyond 2^31.
    Results are float64; float16 and bfloat16 are exact, float64 activations are counted in float32 (but for maximum
    and minimum). Activations under 2^-126 count as zero.
    """

    def __init__(self, key: str, granularity: Granularity, *, absolute: bool = False) -> None:
        self.key = key
        self.granularity = granularity
        self.absolute = absolute
        self._histogram: Histogram | None = None
        self._maximum = self._minimum = torch.empty(0, dtype=torch.float64)

    def see(self, x: Tensor, a: Tensor) -> None:
        """Take up one call of an activation: its output."""
        self.update(a)

    # A tensor made in inference mode could later neither be updated nor become a parameter.
    @torch.inference_mode(False)
    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add the activations ``x`` [N, ...]; nothing changes if they are refused.

        Raises CalibrationError for NaN or infinite activations and for a shape that does not fit.
        """
        require(x.is_floating_point(), f"{self.key} gives {x.dtype}; activations are floating-point.", CalibrationError)
        x = as_channels(x.abs() if self.absolute else x, self.granularity, self.key)
        x = x if self._histogram is None else x.to(self._maximum.device)
        if x.numel() == 0:
            return
        smallest, largest = x.amin((0, 2)), x.amax((0, 2))
        # A float64 beyond the range of float32 is refused with the infinite ones.
        require(
            bool(torch.isfinite(smallest.float()).all() and torch.isfinite(largest.float()).all()),
            f"The activations of {self.key} hold values that are NaN, infinite or beyond float32; check the "
            "calibration data and the weights.",
            CalibrationError,
        )
        if self._histogram is None:
            self._histogram = Histogram(len(largest), x.device)
            self._maximum, self._minimum = largest.double(), smallest.double()
        check_channels(self.key, self._histogram.channels, len(largest))
        self._histogram.add(x, largest)
        self._maximum = torch.maximum(self._maximum, largest.double())
        self._minimum = torch.minimum(self._minimum, smallest.double())

    @torch.inference_mode(False)
    @torch.no_grad()
    def merge(self, other: ActivationStats) -> None:
        """Add everything that ``other`` saw, for example in another process; associative and commutative."""
        require(
            (self.granularity, self.absolute) == (other.granularity, other.absolute),
            f"Statistics of {self.key} ({self.granularity}, absolute={self.absolute}) and {other.key} "
            f"({other.granularity}, absolute={other.absolute}) describe different things; merge like with like.",
        )
        if other._histogram is None:
            return
        if self._histogram is None:
            self._histogram = Histogram(other._histogram.channels, other._maximum.device)
            self._maximum, self._minimum = other._maximum, other._minimum
        require(
            self._histogram.channels == other._histogram.channels,
            f"Statistics of {self.key} have {self._histogram.channels} channels and {other._histogram.channels}; "
            "merge those of one network.",
        )
        self._histogram.merge(other._histogram)
        self._maximum = torch.maximum(self._maximum, other._maximum.to(self._maximum.device))
        self._minimum = torch.minimum(self._minimum, other._minimum.to(self._maximum.device))

    @property
    def count(self) -> int:
        """How many activations were seen, per channel where it is kept per channel."""
        return 0 if self._histogram is None else self._histogram.count

    @property
    def maximum(self) -> Tensor:
        """The largest activation, exact, [] or [C]; it may be negative."""
        self._seen()
        return self._shaped(self._maximum)

    @property
    def minimum(self) -> Tensor:
        """The smallest activation, exact, [] or [C]; it may be negative."""
        self._seen()
        return self._shaped(self._minimum)

    @property
    def positive_count(self) -> Tensor:
        """How many activations were positive, [] or [C] int64."""
        return self._shaped(self._seen().positive)

    @property
    def dead(self) -> Tensor:
        """Where no activation was positive, [] or [C] bool."""
        return self.positive_count == 0

    @torch.inference_mode(False)
    @torch.no_grad()
    def quantile(self, p: float, positive_only: bool = False) -> Tensor:
        """Return the ``p``-th percentile, p in (0, 100], of ``max(x, 0)``, [] or [C]; 100 is the maximum.

        As in ``torch.quantile``: the place ``p / 100 (n - 1)`` of the n sorted values, linear between two of them;
        each of the two is within 0.1 %. ``positive_only`` leaves zero and negative activations out (Rueckauer's
        toolbox does); then a channel without positive ones gives 0.
        """
        require(0 < p <= 100, f"quantile(p={p!r}): p must be a number in (0, 100]; 100 is the maximum.")
        histogram = self._seen()
        positive = histogram.positive
        n = positive if positive_only else torch.full_like(positive, histogram.count)
        # In fractions, or 99.9 % of 1001 values would be a hair beyond the 999th, and no longer 0 where that is 0.
        place = {k: divmod(Fraction(str(float(p))) * (k - 1), 100) for k in set(n.tolist())}
        lower = torch.tensor([place[k][0] for k in n.tolist()], device=n.device)
        share = torch.tensor([float(place[k][1] / 100) for k in n.tolist()], dtype=torch.float64, device=n.device)
        rank = torch.stack((lower, lower + 1), 1) - (n - positive)[:, None]
        smallest, largest = (bound.clamp_min(0)[:, None] for bound in (self._minimum, self._maximum))
        values = histogram.at(rank).clamp(smallest, largest)
        low, high = torch.where(rank == positive[:, None] - 1, largest, values).unbind(1)
        return self._shaped(low + (high - low) * share)

    def bins(self) -> Bins:
        """Return the histogram of the positive activations as numbers, counts [C] or [1] and scales; see ``Bins``."""
        return self._seen().bins()

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors and numbers, for saving or for another process."""
        dim = self.granularity.dim if isinstance(self.granularity, PerChannel) else None
        state: dict[str, Any] = {"key": self.key, "dim": dim, "absolute": self.absolute}
        if self._histogram is not None:
            state |= {"maximum": self._maximum, "minimum": self._minimum, **self._histogram.state_dict()}
        return state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> ActivationStats:
        """Return the statistics that ``state_dict`` described; they share its tensors."""
        dim = state["dim"]
        stats = cls(state["key"], PerLayer() if dim is None else PerChannel(dim), absolute=state["absolute"])
        if "maximum" in state:
            stats._maximum, stats._minimum = state["maximum"], state["minimum"]
            stats._histogram = Histogram.from_state_dict(state)
        return stats

    def _seen(self) -> Histogram:
        if self._histogram is None:
            raise CalibrationError(f"{self.key} saw no activation; pass calibration data that reaches it.")
        return self._histogram

    def _shaped(self, value: Tensor) -> Tensor:
        return value[0] if isinstance(self.granularity, PerLayer) else value
