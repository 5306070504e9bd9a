"""The add-on inside SpikingJelly 2.0's own conversion flow."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from conversion_ext.conversion.pipeline import convert
from conversion_ext.errors import BackendError
from conversion_ext.recipes.recipe import Recipe

try:
    from spikingjelly.activation_based.ann2snn.recipes import FXConversionRecipe
except ImportError as error:
    raise BackendError(
        "ExtensionRecipe needs SpikingJelly 2.0, whose ann2snn has recipes; "
        'run pip install "spikingjelly>=2.0", or call conversion_ext.convert(..., backend="spikingjelly").'
    ) from error

__all__ = ["ExtensionRecipe"]


class ExtensionRecipe(FXConversionRecipe):
    """A recipe of this package for ``ann2snn.Converter``: ``Converter(ExtensionRecipe(loader)).convert(ann)``.

    ``dataloader`` and ``recipe`` are those of :func:`conversion_ext.convert`, and so are further keywords (``T``,
    ``fold``, ``skip``, ...). SpikingJelly traces the network with its plain tracer first, so what that tracer
    refuses needs :func:`conversion_ext.convert` itself. The network is copied, never modified.
    """

    def __init__(self, dataloader: Any = None, recipe: str | Recipe = "default", **options: Any) -> None:
        self.dataloader = dataloader
        self.recipe = recipe
        self.options = options

    def before_trace(self, converter: Any, ann: nn.Module) -> nn.Module:
        """Trace in evaluation mode; the converter restores the flags of the network."""
        return ann.eval()

    def finalize(self, converter: Any, fx_model: GraphModule) -> nn.Module:
        """Return the converted network; the earlier steps of the flow leave the traced graph as it is."""
        with torch.no_grad():
            return convert(fx_model, self.dataloader, recipe=self.recipe, backend="spikingjelly", **self.options)
