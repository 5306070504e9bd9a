"""Normalization by the worst case that the weights allow: no data needed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.errors import Problem, UnsupportedError, require
from conversion_ext.normalizers.base import Normalizer, positive, register_normalizer
from conversion_ext.operators.sites import Site, SiteKind
from conversion_ext.types import PerChannel, PerLayer

if TYPE_CHECKING:
    from conversion_ext.calibration.statistics import ActivationStats

__all__ = ["ModelBased"]

REMEDY = (
    "Use a normalizer that needs data, such as Percentile(); ModelBased knows convolutions, linear layers, "
    "BatchNorm, ReLU, pooling, flatten, addition and cat."
)


@dataclass(frozen=True)
class Interval:
    """Bounds of the values of each channel [C], or of all [1]; ``layout`` says where a channel is.

    "spatial": [N, C, ...]; "vector": [N, C]; "flat": [N, C * k], each channel k times in a row.
    """

    low: Tensor
    high: Tensor
    layout: str = "spatial"

    def over(self, size: int) -> Interval | None:
        """Return the bounds of ``size`` channels, None where they do not fit."""
        repeat, rest = divmod(size, len(self.low))
        if rest or (repeat > 1 and len(self.low) > 1 and self.layout != "flat"):
            return None
        return replace(self, low=self.low.repeat_interleave(repeat), high=self.high.repeat_interleave(repeat))

    def with_zero(self) -> Interval:
        """Return the bounds where zeros are among the values, as padding puts them."""
        return replace(self, low=self.low.clamp_max(0), high=self.high.clamp_min(0))


@dataclass(frozen=True, kw_only=True)
class ModelBased(Normalizer):
    """``lambda`` = the largest activation that the weights allow for inputs within ``input_range``; no data.

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
        known: dict[Node, Interval] = {}
        bounds: dict[str, Tensor] = {}
        needed = sources(at)
        for node in model.graph.nodes:
            if node in at:
                bounds[at[node].key], known[node] = self._at_site(node, at[node], known[node.all_input_nodes[0]])
            elif node in needed:
                known[node] = self._bound(model, node, known)
        return positive(bounds, sites, "Never active with these weights")

    def _at_site(self, node: Node, site: Site, x: Interval) -> tuple[Tensor, Interval]:
        """Return the largest activation, [] or [C], and the bounds behind the site."""
        if site.kind is not SiteKind.RELU:
            raise unsupported(node, f"it is a {site.kind} site, and only ReLUs are bounded.")
        per_layer, shape = isinstance(self.granularity, PerLayer), graph.info(node).shape
        channels: Interval | None = x
        if not per_layer and shape is not None:
            channels = x.over(shape[1])
        elif not per_layer and x.layout == "flat":
            channels = None
        if channels is None:
            raise unsupported(node, "bounds are known along another dimension than its channels.")
        high = channels.high.clamp(0, site.cap)
        high = high.amax(0, keepdim=True) if per_layer else high
        if not bool((high <= torch.finfo(torch.float32).max).all()):  # NaN is not either
            raise unsupported(node, "its worst case is beyond float32: it grew with depth, or weights are NaN.")
        layout = "vector" if channels.layout == "flat" else channels.layout
        return high[0] if per_layer else high, Interval(torch.zeros_like(high), high, layout)

    def _bound(self, model: GraphModule, node: Node, known: Mapping[Node, Interval]) -> Interval:
        """Return the bounds of what ``node`` computes, given those of its inputs."""
        if node.op == "placeholder":
            low, high = torch.tensor(self.input_range, dtype=torch.float64).view(2, 1)
            return Interval(low, high)
        inputs = [known[source] for source in node.all_input_nodes]
        module = graph.module_of(model, node)
        found = None
        if module is None and node.target in CALLS:
            found = CALLS[node.target](node, inputs)
        elif module is not None and graph.is_stock(module) and len(inputs) == 1:
            rule = next((RULES[kind] for kind in type(module).__mro__ if kind in RULES), None)
            found = rule and rule(module, inputs[0])
        if found is None:
            called = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
            raise unsupported(node, f"{called} as it is used here has no known bound.")
        return found


def weighted(weight: Tensor, bias: Tensor | None, groups: int, x: Interval, layout: str) -> Interval | None:
    """Return the bounds of a layer with ``weight`` [O, I / groups, K]: the extreme of each product, summed."""
    found = x.over(weight.shape[1] * groups)
    if found is None:
        return None
    weight = weight.detach().cpu().double().unflatten(0, (groups, -1))
    up, down = weight.clamp_min(0).sum(3), weight.clamp_max(0).sum(3)  # [groups, O / groups, I / groups]
    low, high = found.low.view(groups, -1, 1), found.high.view(groups, -1, 1)
    shift = 0 if bias is None else bias.detach().cpu().double()
    return Interval((up @ low + down @ high).flatten() + shift, (up @ high + down @ low).flatten() + shift, layout)


def convolution(module: Any, x: Interval) -> Interval | None:
    """Return the bounds of a convolution, whose padding puts zeros among the values."""
    padded = module.padding == "same" or (module.padding != "valid" and any(module.padding))
    x = x.with_zero() if padded else x
    return weighted(module.weight.flatten(2), module.bias, module.groups, x, "spatial")


def linear(module: nn.Linear, x: Interval) -> Interval | None:
    """Return the bounds of a linear layer; along another dimension than the channels, all of these look alike."""
    if x.layout == "spatial":
        x = Interval(x.low.amin(0, keepdim=True), x.high.amax(0, keepdim=True))
    return weighted(module.weight[:, :, None], module.bias, 1, x, "vector")


def batch_norm(module: Any, x: Interval) -> Interval | None:
    """Return the bounds of BatchNorm with fixed statistics: a depthwise layer."""
    if module.running_var is None or module.training:
        return None
    gain = (module.running_var.double() + module.eps).rsqrt()
    if module.weight is not None:
        gain = gain * module.weight
    shift = -module.running_mean * gain
    if module.bias is not None:
        shift = shift + module.bias
    return weighted(gain[:, None, None], shift, len(gain), x, x.layout)


def pooling(module: Any, x: Interval) -> Interval:
    """Return the bounds of a pool, which are those of what it pools, zeros of padding included."""
    return x.with_zero()


def unchanged(module: Any, x: Interval) -> Interval:
    """Return the bounds of what does nothing in evaluation."""
    return x


def flatten(module: nn.Flatten, x: Interval) -> Interval | None:
    """Return the bounds behind a flatten of everything but the batch."""
    return flat(x) if (module.start_dim, module.end_dim) == (1, -1) else None


def flat(x: Interval) -> Interval:
    """Return the bounds of all dimensions but the batch in one."""
    return replace(x, layout="flat") if x.layout == "spatial" else x


def call_flatten(node: Node, inputs: list[Interval]) -> Interval | None:
    """Return the bounds behind ``torch.flatten(x, 1)``."""
    return flat(inputs[0]) if node.args[1:] == (1,) and not node.kwargs else None


def call_add(node: Node, inputs: list[Interval]) -> Interval | None:
    """Return the bounds of a sum of two tensors, which may be one and the same."""
    if node.kwargs or not all(isinstance(arg, Node) for arg in node.args):
        return None
    a, b = inputs * 2 if len(inputs) == 1 else inputs
    if len(a.low) != len(b.low) and 1 not in (len(a.low), len(b.low)):
        return None
    return Interval(a.low + b.low, a.high + b.high, a.layout if len(b.low) == 1 else b.layout)


def call_cat(node: Node, inputs: list[Interval]) -> Interval | None:
    """Return the bounds of tensors joined along their channels; one bound for all where channels are not known."""
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if dim != 1 or len({x.layout for x in inputs}) != 1:
        return None
    low, high = torch.cat([x.low for x in inputs]), torch.cat([x.high for x in inputs])
    if any(len(x.low) == 1 for x in inputs):
        low, high = low.amin(0, keepdim=True), high.amax(0, keepdim=True)
    return Interval(low, high, inputs[0].layout)


RULES: dict[type[nn.Module], Callable[[Any, Interval], Interval | None]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), convolution),
    nn.Linear: linear,
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), batch_norm),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), pooling),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), unchanged),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), unchanged),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), unchanged),
    nn.Flatten: flatten,
}
CALLS: dict[Any, Callable[[Node, list[Interval]], Interval | None]] = {
    operator.add: call_add,
    operator.iadd: call_add,
    torch.add: call_add,
    torch.cat: call_cat,
    torch.flatten: call_flatten,
}


def sources(nodes: Iterable[Node]) -> set[Node]:
    """Return all nodes that any of ``nodes`` depends on."""
    found: set[Node] = set()
    open_ends = list(nodes)
    while open_ends:
        new = set(open_ends.pop().all_input_nodes) - found
        found |= new
        open_ends += new
    return found


def unsupported(node: Node, reason: str) -> UnsupportedError:
    """Return the error that says where and why no bound is known, and what to do."""
    problem = Problem(graph.key_of(node), reason, REMEDY, graph.describe(node))
    return UnsupportedError(f"ModelBased cannot normalize: {problem}", (problem,))


register_normalizer("model_based", ModelBased)
