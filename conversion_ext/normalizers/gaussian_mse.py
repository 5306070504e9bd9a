"""The threshold with the least quantization error for normally distributed currents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.calibration.histogram import as_channels, check_channels
from conversion_ext.calibration.moments import Moments
from conversion_ext.errors import CalibrationError, Problem, UnsupportedError, require
from conversion_ext.normalizers.base import Normalizer, of_site, positive, register_normalizer
from conversion_ext.operators.sites import Site
from conversion_ext.types import Granularity, PerChannel, PerLayer

__all__ = ["GaussianMSE"]

Normal = tuple[Tensor, Tensor]
"""Mean and standard deviation, each [C] float64."""

# Candidates in units of the largest sensible threshold, 12 standard deviations above the positive part of the mean.
CANDIDATES = (2.0 ** torch.arange(-10, 0.25, 0.25, dtype=torch.float64)).tolist()
BISECTIONS = 30  # from two neighbours of a candidate down to 1e-9 of the threshold


@dataclass(frozen=True, kw_only=True)
class GaussianMSE(Normalizer):
    """``lambda`` minimizes ``E[(max(x, 0) - q(x))^2]`` for normally distributed currents, ``x ~ N(mu, sigma^2)``.

    Use it when there is no data, but BatchNorm before every site, whose statistics take its place.

    ``q(x) = lambda/n clamp(floor(n x / lambda + 1/2), 0, n)``, n = T times the spikes of a step. At the minimum
    ``E[q max(x, 0)] = E[q^2]``; of several minima the least is found among candidates 19 % apart and then bisected.
    ``mu`` and ``sigma`` are those of the current that enters the activation, over the calibration data. With
    ``data_free`` they are what a BatchNorm before the activation prescribes, its shift and its |gain|, and no data is
    needed; other activations (behind a sum, say) are refused with UnsupportedError.

    Reference: Huang, Fang, Bu et al., ICML 2025 (100 fixed-point steps from 1, which need not have converged).
    """

    granularity: Granularity = field(default=PerChannel())
    data_free: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.data_free, bool), f"GaussianMSE(data_free={self.data_free!r}): use True or False.")
        require(
            not self.data_free or self.granularity in (PerLayer(), PerChannel(1)),
            f"GaussianMSE(granularity={self.granularity!r}, data_free=True): BatchNorm knows "
            "PerLayer() or PerChannel(1).",
        )

    @property
    def needs_calibration(self) -> bool:
        """Whether currents must be observed."""
        return not self.data_free

    @property
    def needs_T(self) -> bool:
        """Whether the number of time steps must be known."""
        return True

    def statistics(self, site: Site) -> Currents:
        """Return the moments of the currents."""
        return Currents(site.key, self.granularity)

    def thresholds(
        self, model: GraphModule, sites: Sequence[Site], stats: Mapping[str, Any], levels: int | None
    ) -> dict[str, Tensor]:
        """Return {site key: threshold} in the order of ``sites``."""
        assert levels is not None
        if self.data_free:
            normals = self._prescribed(model, sites)
        else:
            normals = {site.key: of_site(stats, site).mean_and_std() for site in sites}
        raw = {key: least_error(mean, std, levels) for key, (mean, std) in normals.items()}
        if isinstance(self.granularity, PerLayer):
            raw = {key: threshold[0] for key, threshold in raw.items()}
        what = "Never active by their BatchNorm" if self.data_free else "Not active on the calibration data"
        return positive(raw, sites, what)

    def _prescribed(self, model: GraphModule, sites: Sequence[Site]) -> dict[str, Normal]:
        """Return what the BatchNorms before the sites prescribe."""
        normals: dict[str, Normal] = {}
        problems: list[Problem] = []
        by_target = {site.target: site for site in sites}
        for node in model.graph.nodes:
            site = by_target.get(str(node.target)) if node.op == "call_module" else None
            if site is None:
                continue
            source = node.args[0]
            normal = graph.info(source).normal if isinstance(source, Node) else None
            if normal is not None:
                normals[site.key] = self._pooled(*normal)
            else:
                problems.append(
                    Problem(
                        site.key,
                        "no BatchNorm feeds this activation directly, so its distribution is unknown without data.",
                        "Use GaussianMSE() and pass calibration data.",
                        graph.describe(node),
                    )
                )
        if problems:
            listed = "; ".join(map(str, problems))
            raise UnsupportedError(f"GaussianMSE(data_free=True) cannot normalize: {listed}", tuple(problems))
        return normals

    def _pooled(self, mean: Tensor, std: Tensor) -> Normal:
        """Return the moments as they are, or those of all channels together."""
        if not isinstance(self.granularity, PerLayer):
            return mean, std
        whole = mean.mean(0, keepdim=True)
        return whole, ((std.square() + mean.square()).mean(0, keepdim=True) - whole.square()).clamp_min(0).sqrt()


class Currents:
    """Mean and standard deviation of what enters a site, those of a site that is never active being 0."""

    def __init__(self, key: str, granularity: Granularity) -> None:
        self.key = key
        self.granularity = granularity
        self.moments: Moments | None = None
        self.largest = torch.empty(0)

    def see(self, x: Tensor, a: Tensor) -> None:
        """Take up the current x of one call."""
        x = as_channels(x, self.granularity, self.key)
        require(
            bool(torch.isfinite(x).all()),
            f"The currents of {self.key} hold NaN or infinite values; check the calibration data and the weights.",
            CalibrationError,
        )
        if self.moments is None:
            self.moments = Moments(x.shape[1], x.device)
            self.largest = torch.zeros(x.shape[1], dtype=x.dtype, device=x.device)
        check_channels(self.key, self.moments.channels, x.shape[1])
        self.moments.add(x)
        self.largest = torch.maximum(self.largest, x.amax((0, 2)))

    def merge(self, other: Currents) -> None:
        """Add everything that ``other`` saw, for example in another process."""
        if other.moments is None:
            return
        if self.moments is None:
            self.moments, self.largest = other.moments, other.largest
            return
        check_channels(self.key, self.moments.channels, other.moments.channels)
        self.moments.merge(other.moments)
        self.largest = torch.maximum(self.largest, other.largest.to(self.largest.device))

    def mean_and_std(self) -> Normal:
        """Return mean and standard deviation, [C] or [1]."""
        if self.moments is None:
            raise CalibrationError(f"{self.key} saw no activation; pass calibration data that reaches it.")
        mean, std = self.moments.mean_and_std()
        live = self.largest > 0
        return mean * live, std * live


def least_error(mean: Tensor, std: Tensor, n: int) -> Tensor:
    """Return the threshold [C] of least squared error for n levels and x ~ N(mean, std^2); 0 for a dead channel."""
    spread = std > 1e-9 * mean.abs()
    constant = mean.clamp_min(0)  # without spread the best threshold is the value itself
    mean, std = mean[spread], std[spread]
    largest = mean.clamp_min(0) + 12 * std
    errors = torch.stack([quantized(mean, std, share * largest, n)[2] for share in CANDIDATES])
    best = torch.tensor(CANDIDATES, dtype=mean.dtype, device=mean.device)[errors.argmin(0)] * largest
    low, high = best * 2**-0.25, best * 2**0.25
    for _ in range(BISECTIONS):
        middle = (low * high).sqrt()
        product, square, _error = quantized(mean, std, middle, n)
        grows = product > square
        low, high = torch.where(grows, middle, low), torch.where(grows, high, middle)
    chosen = torch.where(quantized(mean, std, low, n)[2] < errors.amin(0), low, best)
    return constant.masked_scatter(spread, chosen)


def quantized(mean: Tensor, std: Tensor, threshold: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``E[q max(x, 0)]``, ``E[q^2]`` and ``E[q^2] - 2 E[q max(x, 0)]``, the error but for a constant; each [C].

    q is a sum of steps of height s = threshold / n at the edges (i - 1/2) s: with ``P_i = P(x > edge_i)`` and
    ``M_i = E[x; x > edge_i] = mean P_i + std phi_i``, ``E[q x] = s sum M_i`` and ``E[q^2] = s^2 sum (2 i - 1) P_i``.
    """
    step = threshold / n
    odd = torch.arange(1, 2 * n, 2, dtype=mean.dtype, device=mean.device)
    z = (step[:, None] * (odd / 2) - mean[:, None]) / std[:, None]
    beyond = torch.special.erfc(z * 0.5**0.5) / 2
    density = torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5
    product = step * (mean * beyond.sum(1) + std * density.sum(1))
    square = step.square() * (beyond @ odd)
    return product, square, square - 2 * product


register_normalizer("gaussian_mse", GaussianMSE)
