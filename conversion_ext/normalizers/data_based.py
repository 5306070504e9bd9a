"""Normalization by the largest activation or weight, whichever is larger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.errors import require
from conversion_ext.graph import layers
from conversion_ext.normalizers.base import Normalizer, of_site, register_normalizer, usable, warn_dead
from conversion_ext.operators.sites import Site
from conversion_ext.types import PerLayer

if TYPE_CHECKING:
    from conversion_ext.calibration.statistics import ActivationStats

__all__ = ["DataBased"]

COMPATIBLE = ("", "diehl_code")


@dataclass(frozen=True, kw_only=True)
class DataBased(Normalizer):
    """``lambda_l = max(max W_l, max a_l)``: the largest weight into the layer, or activation of it, if that is larger.

    Use it to compare with Diehl et al., whose network has no biases.

    Weights become ``W_l lambda_(l-1) / lambda_l``: a layer is rescaled relative to the one before it. The weight term
    is to keep one spike from charging a neuron by more than its threshold; a is that of the calibration data.
    Where several weight layers reach a site (a residual sum) the largest of their weights counts.

    The authors' code keeps the factor that it applied, ``f_l = lambda_l / f_(l-1)``, for what should be lambda_l, so
    from the third layer on its thresholds are ``f_1 f_2 ... f_l`` instead: ``compat="diehl_code"`` does that, on sites
    in graph order.

    Reference: Diehl et al., IJCNN 2015 (data-based normalization).
    """

    compat: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.compat in COMPATIBLE,
            f'DataBased(compat={self.compat!r}): use "" for the method or "diehl_code" for its authors\' program.',
        )

    def thresholds(
        self, model: GraphModule, sites: Sequence[Site], stats: Mapping[str, Any], levels: int | None
    ) -> dict[str, Tensor]:
        """Return {site key: threshold} in the order of ``sites``."""
        nodes = {str(node.target): node for node in model.graph.nodes if node.op == "call_module"}
        stops = {nodes[site.target] for site in sites if site.target in nodes}
        thresholds: dict[str, Tensor] = {}
        for site in sites:
            seen = of_site(stats, site)
            weight = self._largest_weight(model, nodes[site.target], stops - {nodes[site.target]}, seen)
            # A channel that is never active needs no guard, and none of its own threshold.
            raw = torch.where(seen.dead, torch.zeros_like(weight), torch.maximum(seen.maximum, weight))
            thresholds[site.key] = usable(raw, seen.maximum, site.cap)
        warn_dead({site.key: stats[site.key].dead for site in sites}, "Not active on the calibration data")
        return _applied(thresholds) if self.compat else thresholds

    def _largest_weight(self, model: GraphModule, node: Node, stops: set[Node], seen: ActivationStats) -> Tensor:
        """Return the largest weight, at least 0, [] or [C], of the layers between other sites and this one."""
        largest = torch.zeros_like(seen.maximum)
        open_ends, known = list(node.all_input_nodes), set[Node]()
        while open_ends:
            source = open_ends.pop()
            if source in stops or source in known:
                continue
            known.add(source)
            module: Any = graph.module_of(model, source)
            if isinstance(module, layers.WEIGHTS):
                rows = layers.output_rows(module).detach().double().to(largest.device)
                rows = rows.flatten(1).amax(1).clamp_min(0)
                fits = isinstance(self.granularity, PerLayer) or len(rows) != len(largest)
                largest = torch.maximum(largest, rows.amax() if fits else rows)
            else:
                open_ends += source.all_input_nodes
        return largest


def _applied(thresholds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the thresholds that the authors' code arrives at."""
    factor, total = torch.ones(()), torch.ones(())
    applied: dict[str, Tensor] = {}
    for key, threshold in thresholds.items():
        factor = threshold / factor
        total = applied[key] = total * factor
    return applied


register_normalizer("data_based", DataBased)
