"""Training of converted networks: losses, terms added to them, and rules of the gradient."""

from __future__ import annotations

from conversion_ext.training import losses
from conversion_ext.training.terms import ActivityBand, Distillation

__all__ = ["ActivityBand", "Distillation", "losses"]
