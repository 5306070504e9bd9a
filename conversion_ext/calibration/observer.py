"""What the activations of a site look like, and how they are seen: one pass, bounded memory, any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.hooks import RemovableHandle

from conversion_ext.calibration.histogram import Bins
from conversion_ext.calibration.statistics import ActivationStats, Statistics
from conversion_ext.errors import CalibrationError, require
from conversion_ext.operators.sites import Site, SiteKind
from conversion_ext.types import Granularity

__all__ = ["Bins", "Observer"]


class Observer:
    """While open, collects ``stats`` {site key: ActivationStats} from every call of ``model``.

    >>> import torch
    >>> from torch.fx import symbolic_trace
    >>> from conversion_ext.types import PerLayer
    >>> model = symbolic_trace(nn.Sequential(nn.ReLU()))
    >>> with Observer(model, [Site("act", "0")], PerLayer()) as observer:
    ...     y = model(torch.tensor([[-1.0, 3.0]]))
    >>> observer.stats["act"].maximum.item()
    3.0

    ReLU sites record their output, all others its absolute value; ``own`` may give a ReLU site statistics of another
    kind. No hook outlives the block, whatever ends it.
    """

    def __init__(
        self,
        model: GraphModule,
        sites: Sequence[Site],
        granularity: Granularity,
        own: Callable[[Site], Statistics | None] = lambda site: None,
    ) -> None:
        self.stats: dict[str, Any] = {}
        for site in sites:
            absolute = site.kind is not SiteKind.RELU
            special = None if absolute else own(site)
            self.stats[site.key] = special or ActivationStats(site.key, granularity, absolute=absolute)
        self._modules = {site.key: model.get_submodule(site.target) for site in sites}
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Observer:
        self._hooks = [
            self._modules[key].register_forward_hook(hook_of(key, stats)) for key, stats in self.stats.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def hook_of(key: str, stats: Statistics) -> Callable[[nn.Module, Any, Any], Tensor | None]:
    """Return a forward hook that shows the site ``key`` to its ``stats``."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        require(
            isinstance(output, Tensor),
            f"{key} ({type(module).__name__}) returns a {type(output).__name__}; a site returns one tensor.",
            CalibrationError,
        )
        return stats.see(inputs[0], output)

    return hook
