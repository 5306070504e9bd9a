"""Rules of the gradient of spikes, one file each."""

from __future__ import annotations

from conversion_ext.registry import import_siblings
from conversion_ext.training.gradients.base import Gradient, gradient_of, gradients, register_gradient

__all__ = ["Gradient", "gradient_of", "gradients", "register_gradient"]

import_siblings(__name__, list(__path__))
