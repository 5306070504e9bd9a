"""The contract of a normalizer: from what a site's activations look like to the site's threshold."""

# Annotations are objects, not text: fields are inherited, and a reader of a subclass looks up text in its own module.
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from conversion_ext.errors import CalibrationError, require, warn
from conversion_ext.operators.sites import Site
from conversion_ext.registry import Registry, class_of
from conversion_ext.types import Granularity, PerChannel, PerLayer

if TYPE_CHECKING:
    from conversion_ext.calibration.statistics import ActivationStats, Statistics

__all__ = ["Normalizer", "normalizers", "of_site", "positive", "register_normalizer", "usable", "warn_dead"]

SMALLEST = torch.finfo(torch.float32).tiny  # a smaller threshold has no finite inverse in float32


@dataclass(frozen=True, kw_only=True)
class Normalizer:
    """Base of all normalizers: a frozen value; ``threshold`` is a pure function of one site's statistics.

    Thresholds are positive and finite, in units of the ANN's activations, shape [] (PerLayer) or [C], float64.
    """

    granularity: Granularity = PerLayer()

    def __post_init__(self) -> None:
        require(
            isinstance(self.granularity, PerLayer | PerChannel),
            f"{type(self).__name__}(granularity={self.granularity!r}): use PerLayer() or PerChannel(dim).",
        )

    @property
    def needs_calibration(self) -> bool:
        """Whether activations must be observed."""
        return True

    @property
    def needs_T(self) -> bool:
        """Whether the number of time steps must be known."""
        return False

    @property
    def runs(self) -> int:
        """How many times the calibration data is run."""
        return 1

    def statistics(self, site: Site) -> "Statistics | None":
        """Return what collects at ``site`` all that ``thresholds`` needs; None for the distribution of activations."""
        return None

    def threshold(self, stats: "ActivationStats", levels: int | None) -> Tensor:
        """Return the threshold of the site whose activations ``stats`` describes; 0 where they tell nothing."""
        raise TypeError(f"{type(self).__name__} must define threshold() or thresholds().")

    def thresholds(
        self, model: GraphModule, sites: Sequence[Site], stats: Mapping[str, Any], levels: int | None
    ) -> dict[str, Tensor]:
        """Return {site key: threshold} in the order of ``sites``: positive, finite, within each site's cap.

        A channel without a positive activation takes the largest threshold of its site, a site without any takes
        1, and one warning names them. ``levels`` is how many activations above 0 a run can tell apart, T times
        the spikes of a step; None where T is not known. Raises CalibrationError for a site without statistics.
        """
        thresholds: dict[str, Tensor] = {}
        for site in sites:
            seen = of_site(stats, site)
            # Where a percentile of mostly silent activations is 0, their maximum still tells the scale.
            thresholds[site.key] = usable(self.threshold(seen, levels), seen.maximum, site.cap)
        warn_dead({site.key: stats[site.key].dead for site in sites}, "Not active on the calibration data")
        return thresholds


def of_site(stats: Mapping[str, Any], site: Site) -> Any:
    """Return the statistics of ``site``; raise CalibrationError where there are none."""
    require(site.key in stats, f"{site.key} has no statistics; observe it first.", CalibrationError)
    return stats[site.key]


def positive(raw: Mapping[str, Tensor], sites: Sequence[Site], what: str) -> dict[str, Tensor]:
    """Return ``raw`` thresholds within each site's cap, usable ones where they are 0; warn of these with ``what``."""
    warn_dead({site.key: raw[site.key] < SMALLEST for site in sites}, what)
    return {site.key: usable(raw[site.key], raw[site.key], site.cap) for site in sites}


def usable(threshold: Tensor, second: Tensor, cap: float | None) -> Tensor:
    """Return ``threshold`` [] or [C], at most ``cap``, with the next best positive value where it is not positive.

    The next best is ``second`` (same shape), then the largest threshold of the site, then 1.
    """
    positive = torch.where(threshold >= SMALLEST, threshold, second)
    largest = positive.amax()
    positive = torch.where(positive >= SMALLEST, positive, largest if largest >= SMALLEST else torch.ones_like(largest))
    return positive if cap is None else positive.clamp_max(cap)


NAMED = 3  # sites that a warning names


def warn_dead(dead: Mapping[str, Tensor], what: str) -> None:
    """Warn once about the sites whose mask ``dead`` [] or [C] is not empty."""
    named: list[str] = []
    for key, mask in dead.items():
        if bool(mask.any()):
            named.append(f"{key} ({int(mask.sum())} of {mask.numel()} channels)" if mask.dim() else key)
    if named:
        shown = ", ".join(named[:NAMED]) + (f" and {len(named) - NAMED} more sites" if len(named) > NAMED else "")
        warn(f"{what}: {shown}. A dead channel takes the largest threshold of its site, a dead site 1.")


normalizers: Registry[type[Normalizer]] = Registry(
    "normalizer", class_of(Normalizer), "a class derived from Normalizer"
)


def register_normalizer(name: str, normalizer: type[Normalizer]) -> type[Normalizer]:
    """Add a normalizer class under ``name``; it must work without arguments."""
    return normalizers.register(name, normalizer)
