"""The result of a calibration: statistics of every site, collected, saved, resumed and merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from conversion_ext.calibration.observer import Observer
from conversion_ext.calibration.statistics import ActivationStats
from conversion_ext.errors import CalibrationError, require

__all__ = ["Calibration"]


class Calibration:
    """Statistics of every site, which ``convert`` takes in the place of data.

    ``stats``: {site key: statistics}; ``samples``: how many were seen; ``example``: inputs of one call, two samples.
    Equal activations give bit-identical thresholds, whatever the order and the number of parts in which they came.
    """

    def __init__(self, stats: Mapping[str, Any], samples: int = 0, example: tuple[Any, ...] = ()) -> None:
        self.stats = dict(stats)
        self.samples = samples
        self.example = tuple(v[:2].cpu() if isinstance(v, Tensor) and v.dim() else v for v in example)

    def merge(self, other: Calibration) -> None:
        """Add what ``other`` saw of the same network."""
        require(
            self.stats.keys() == other.stats.keys(),
            f"The calibrations are of networks with other sites ({len(self.stats)} against {len(other.stats)}); merge "
            "those of one model and recipe.",
        )
        for key, stats in self.stats.items():
            stats.merge(other.stats[key])
        self.samples += other.samples

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors, numbers and strings, for ``torch.save``."""
        other = sorted({type(s).__name__ for s in self.stats.values() if not isinstance(s, ActivationStats)})
        require(not other, f"Statistics of the kind {', '.join(other)} cannot be saved; use another normalizer.")
        sites = {key: stats.state_dict() for key, stats in self.stats.items()}
        return {"samples": self.samples, "example": list(self.example), "sites": sites}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Calibration:
        """Return the calibration that ``state_dict`` described."""
        stats = {key: ActivationStats.from_state_dict(site) for key, site in state["sites"].items()}
        return cls(stats, state["samples"], tuple(state["example"]))

    def check(self, observer: Observer) -> None:
        """Raise CalibrationError unless these are the statistics that ``observer`` would collect."""
        for key, needed in observer.stats.items():
            stats: Any = self.stats.get(key)
            require(
                type(stats) is type(needed) and stats.granularity == needed.granularity,
                f"The calibration does not hold of {key} what this recipe needs; calibrate with the same model and "
                "recipe.",
                CalibrationError,
            )
