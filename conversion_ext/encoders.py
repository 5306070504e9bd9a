"""How an input becomes a sequence of time steps."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ConstantCurrent", "Encoder"]


@dataclass(frozen=True)
class Encoder:
    """Base of all encoders."""

    @property
    def constant(self) -> bool:
        """Whether every step sees the same values."""
        return False


@dataclass(frozen=True)
class ConstantCurrent(Encoder):
    """Feed the analog input as the same current at every step, without noise (Rueckauer et al., 2017)."""

    @property
    def constant(self) -> bool:
        """Whether every step sees the same values."""
        return True
