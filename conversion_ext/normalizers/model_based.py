"""Normalization by the worst case that the weights allow: no data needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.errors import Problem, UnsupportedError, require
from conversion_ext.normalizers.base import Normalizer, positive, register_normalizer
from conversion_ext.operators.base import Operator, context_of, operator_of
from conversion_ext.operators.bounds import Interval
from conversion_ext.operators.sites import Site, SiteKind
from conversion_ext.types import PerChannel, PerLayer

if TYPE_CHECKING:
    from conversion_ext.calibration.statistics import ActivationStats

__all__ = ["ModelBased"]

REMEDY = "Use a normalizer that needs data, such as Percentile(); ModelBased needs operators that bound their output."


@dataclass(frozen=True, kw_only=True)
class ModelBased(Normalizer):
    """``lambda`` = the largest activation that the weights allow for inputs within ``input_range``; no data.

    Use it when there is no data at all: thresholds are far too high, so it takes many steps.

    On a chain, per layer: ``lambda_l = max_j (sum_i max(W_ji, 0) lambda_(l-1) + b_j)``, so no current can exceed the
    threshold. Diehl et al. have no biases; adding ``b_j`` as it is keeps the bound exact. Elsewhere (negative
    inputs, residual additions, cat, per channel) the same by interval arithmetic, which is an upper bound. The worst
    case grows with depth: rates become low, so this is for shallow networks and hard guarantees.

    Raises UnsupportedError at operations it cannot bound, with their path.

    Reference: Diehl et al., IJCNN 2015 (model-based normalization).
    """

    input_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.input_range
        require(
            -torch.inf < low < high < torch.inf,
            f"ModelBased(input_range={self.input_range!r}): give the least and the largest input, (low, high).",
        )
        require(
            self.granularity in (PerLayer(), PerChannel(1)),
            f"ModelBased(granularity={self.granularity!r}): use PerLayer() or PerChannel(1); it bounds channels.",
        )

    @property
    def needs_calibration(self) -> bool:
        """Whether activations must be observed: no."""
        return False

    def thresholds(
        self, model: GraphModule, sites: Sequence[Site], stats: Mapping[str, ActivationStats], levels: int | None
    ) -> dict[str, Tensor]:
        """Return {site key: threshold} in the order of ``sites``; ``stats`` are not used."""
        by_target = {site.target: site for site in sites}
        at = {node: by_target[str(node.target)] for node in model.graph.nodes if str(node.target) in by_target}
        known: dict[Node, Any] = {}
        bounds: dict[str, Tensor] = {}
        needed = sources(at)
        for node in model.graph.nodes:
            if node in at:
                bounds[at[node].key], known[node] = self._at_site(node, at[node], known[node.all_input_nodes[0]])
            elif node in needed and graph.info(node).is_data:
                known[node] = self._bound(model, node, known)
        return positive(bounds, sites, "Never active with these weights")

    def _at_site(self, node: Node, site: Site, x: Interval) -> tuple[Tensor, Interval]:
        """Return the largest activation, [] or [C], and the bounds behind the site."""
        if site.kind is not SiteKind.RELU:
            raise unsupported(node, f"it is a {site.kind} site, and only ReLUs are bounded.")
        shape = graph.info(node).shape
        high = x.along(1).high.clamp(0, site.cap).flatten()
        high = high.amax(0, keepdim=True) if isinstance(self.granularity, PerLayer) else high.expand(shape[1])
        if not bool((high <= torch.finfo(torch.float32).max).all()):  # NaN is not either
            raise unsupported(node, "its worst case is beyond float32: it grew with depth, or weights are NaN.")
        behind = high.reshape(1, -1, *[1] * (len(shape) - 2))
        return high[0] if isinstance(self.granularity, PerLayer) else high, Interval(torch.zeros_like(behind), behind)

    def _bound(self, model: GraphModule, node: Node, known: Mapping[Node, Any]) -> Any:
        """Return the bounds of what ``node`` computes, given those of its inputs."""
        if node.op == "placeholder":
            low, high = torch.tensor(self.input_range, dtype=torch.float64).view(2, *[1] * len(graph.info(node).shape))
            return Interval(low, high)
        operator = operator_of(model, node)
        bounds = None
        if isinstance(operator, Operator):
            context = context_of(model, node)
            bounds = operator.bounds(context, [known[source] for source in context.inputs])
        if bounds is None:
            module = graph.module_of(model, node)
            called = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
            raise unsupported(node, f"{called} as it is used here has no known bound.")
        return bounds


def sources(nodes: Iterable[Node]) -> set[Node]:
    """Return all nodes that any of ``nodes`` depends on."""
    reached: set[Node] = set()
    open_ends = list(nodes)
    while open_ends:
        new = set(open_ends.pop().all_input_nodes) - reached
        reached |= new
        open_ends += new
    return reached


def unsupported(node: Node, reason: str) -> UnsupportedError:
    """Return the error with the place where no bound is known, the reason, and the remedy."""
    problem = Problem(graph.key_of(node), reason, REMEDY, graph.describe(node))
    return UnsupportedError(f"ModelBased cannot normalize: {problem}", (problem,))


register_normalizer("model_based", ModelBased)
