"""What remains of scales where no weight can absorb them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext.errors import require
from conversion_ext.types import Family

__all__ = ["ChannelScale"]


def _same_but_for_ones(first: torch.Size, second: torch.Size) -> bool:
    return len(first) == len(second) and all(a == b or 1 in (a, b) for a, b in zip(first, second, strict=True))


class ChannelScale(nn.Module):
    """Multiply by a constant per channel: ``out = scale * x``, a depthwise 1x1 synapse without bias.

    ``scale`` broadcasts against a step: [1, C, 1, 1] for steps [N, C, H, W]; with a time axis in front it works as
    well. On an identity shortcut it is lambda_in / lambda_out (Hu et al., 2021). It has no state.

    Raises:
        ValueError: a scale that is zero, infinite or not a number.
    """

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        scale = torch.as_tensor(scale)
        require(
            bool((scale.isfinite() & (scale != 0)).all()),
            f"ChannelScale(scale={scale.tolist()}): every scale must be a finite number other than 0.",
        )
        self.register_buffer("scale", scale)

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: Any, prefix: str, *args: Any
    ) -> None:
        """Take a scale of another shape, one for all channels or one for each."""
        value = state_dict.get(f"{prefix}scale")
        if isinstance(value, Tensor) and _same_but_for_ones(value.shape, self.scale.shape):
            self.scale = self.scale.new_empty(value.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``scale * x``."""
        return self.scale * x

    def family_out(self, *families: Family) -> Family:
        """Return ANALOG: scaled spikes."""
        return Family.ANALOG

    def extra_repr(self) -> str:
        """Return shape and range of the scale, for ``print``."""
        return f"{list(self.scale.shape)}, {self.scale.min().item():.4g} ... {self.scale.max().item():.4g}"
