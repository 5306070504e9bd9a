"""Weight compensation: weights refitted in closed form to what a spiking network really sends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conversion_ext import graph
from conversion_ext.errors import require
from conversion_ext.exact import power_of_two
from conversion_ext.graph.layers import FORWARD_WEIGHTS
from conversion_ext.network.site import SpikingSite
from conversion_ext.tuners.base import Tuner, register_tuner
from conversion_ext.tuners.walk import OutputStop, SiteStop, SynapseStop

__all__ = ["WeightCompensation"]

# Neighbouring output positions of a convolution say nearly the same: so many rows of a regression are as good as all.
ROWS, ROWS_PER_FEATURE = 20_000, 30
BYTES = 128 << 20  # of the rows of a grouped layer, which has so many of them for each group; beyond, fewer rows
LARGER_DIAGONAL = (1e-6, 1e-4, 1e-2)  # parts of it; float32 products are rounded by less than the second
BLOCK = 192  # features of a block of a Gram matrix


@dataclass(frozen=True, kw_only=True)
class WeightCompensation(Tuner):
    """Refit each weight layer: ``W', b' = argmin E|W' x + b' + o - z|^2 + anchor E|(W' - W) a + b' - b|^2``.

    Use it when T is 16 or less and weights may change: it gains most of all tuners.

    x is the mean over the T steps of what the spiking network sends the layer, a what the ANN does, z what the ANN
    computes there and o the other operands of a sum (a shortcut): errors of earlier layers and of the shortcut are
    absorbed, and the anchor keeps the layer right for true inputs, to which x tends with more steps. A term
    ``ridge P |W' - W|^2``, P the mean power of x, keeps the problem regular. If the result feeds a single ReLU site,
    the loss ignores differences that the neuron cannot represent: for targets z <= 0 every non-positive current is
    correct, and for z at or above saturation every current at or above it. This one-sided loss is convex; it is
    minimized by ``iterations`` of majorization, each one a least-squares problem with the same Gram matrix.

    Changes weights and biases of convolutions and linear layers that are called once and see spikes; a group has a
    regression of its own. A refit that does not lessen the objective on the calibration data is not kept.

    No labels, no gradients. Related, for quantized weights: GPTQ (Frantar et al., 2023), GPTAQ (Li et al., 2025).
    """

    ridge: float = 0.003
    anchor: float = 0.5
    iterations: int = 3

    def __post_init__(self) -> None:
        require(
            isinstance(self.ridge, Real) and self.ridge > 0,
            f"WeightCompensation(ridge={self.ridge!r}): give a number > 0, relative to the mean power of the input.",
        )
        require(
            isinstance(self.anchor, Real) and self.anchor >= 0,
            f"WeightCompensation(anchor={self.anchor!r}): give a number >= 0; 0 fits T steps alone.",
        )
        require(
            isinstance(self.iterations, int) and self.iterations >= 1,
            f"WeightCompensation(iterations={self.iterations!r}): give an integer >= 1.",
        )

    def tune_synapse(self, stop: SynapseStop) -> None:
        """Refit one layer."""
        if self._tunes(stop):
            regression = _Regression(stop)
            regression.solve(self.ridge, self.anchor, self.iterations)
            regression.install()

    def objective(self, stop: SiteStop | SynapseStop | OutputStop) -> Tensor | None:
        """Return the squared errors of a layer that is refitted, without what its change costs."""
        return _Regression(stop).error() if isinstance(stop, SynapseStop) and self._tunes(stop) else None

    def _tunes(self, stop: SynapseStop) -> bool:
        return isinstance(stop.module, FORWARD_WEIGHTS) and stop.varies and not stop.shared


class _Rows:
    """The inputs of a layer and its target outputs at some output positions of all samples, in groups of parts."""

    def __init__(self, stop: SynapseStop) -> None:
        self.stop = stop
        module: Any = stop.module
        self.module = module
        self.groups: int = getattr(module, "groups", 1)
        self.axes = 0 if isinstance(module, nn.Linear) else len(module.kernel_size)
        self.width = module.weight[0].numel() + 1
        self.strides = self._choose_strides()

    def _choose_strides(self) -> list[int]:
        """Return how far apart the positions looked at lie in each axis, so that each feature has enough rows."""
        if not self.axes:
            return []

        def sizes(part: int) -> tuple[Tensor, Tensor]:
            target = self.stop.target(part)
            return torch.tensor(target[:, 0].numel()), torch.tensor(target.shape[2:])

        rows, sums = self.stop.exact_sum(sizes)
        wanted = max(ROWS_PER_FEATURE * self.width, min(ROWS, BYTES // (4 * self.groups * self.width)))
        sparse, strides = float(rows) / wanted, list[int]()
        for axis, size in enumerate(sums / self.stop.count):
            even = int(sparse ** (1 / (self.axes - axis)))
            strides.append(max(1, min(even, int(size))))
            sparse /= strides[-1]
        return strides

    def features(self, group: tuple[int, ...]) -> Tensor:
        """Return the mean over the steps of what the layer is sent, and a one for the bias."""
        return self._joined("features", group, lambda part: self._read(self.stop.mean_input(part), part))

    def true_features(self, group: tuple[int, ...]) -> Tensor:
        """Return what the ANN sends the layer, and a one for the bias."""
        return self._joined("true features", group, lambda part: self._read(self.stop.true_input(part), part))

    def target(self, group: tuple[int, ...]) -> Tensor:
        """Return what the ANN computes, [groups, rows, outputs of a group]."""
        return self._joined("target", group, lambda part: self._outputs(self.stop.target(part), part))

    def other_operands(self, group: tuple[int, ...]) -> Tensor:
        """Return what else is added to the layer's output, [groups, rows, outputs of a group]."""

        def at_positions(part: int) -> Tensor:
            return self._outputs(self.stop.other_operands(part).expand_as(self.stop.target(part)), part)

        return self._joined("other operands", group, at_positions)

    def _joined(self, name: str, group: tuple[int, ...], of: Callable[[int], Tensor]) -> Tensor:
        return self.stop.kept(name, group, lambda: torch.cat([of(part) for part in group], 1))

    def _read(self, x: Tensor, part: int) -> Tensor:
        """Return what the layer reads of its input ``x`` at the positions looked at, and a one for the bias."""
        return F.pad(patches(x, self.module, self._positions(part)), (0, 1), value=1.0)

    def _positions(self, part: int) -> tuple[slice, ...]:
        """Return which output positions of a part are looked at: from another start in each, by turns."""
        number, chosen = self.stop.numbers[part], list[slice]()
        for stride in self.strides:
            number, first = divmod(number, stride)
            chosen.append(slice(first, None, stride))
        return tuple(chosen)

    def _outputs(self, y: Tensor, part: int) -> Tensor:
        """Return ``y`` [N, outputs, ...] at the positions looked at, [groups, rows, outputs of a group]."""
        last = y[(slice(None), slice(None), *self._positions(part))].movedim(1, -1) if self.axes else y
        return last.reshape(-1, self.groups, last.shape[-1] // self.groups).transpose(0, 1)

    def gram(self, features: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        """Return the Gram matrices of the features of all parts, [groups, features + 1, features + 1]."""
        shape, parts = (self.groups, self.width), self.stop.groups
        largest = self.stop.largest_magnitude(lambda group: features(group).abs().amax(1), shape, parts)
        rows = self.stop.largest_magnitude(lambda group: torch.tensor(features(group).shape[1]), (), parts)
        # In powers of two, which cost no bit, no feature is larger than 1, and no product than the number of rows.
        unit = power_of_two(-torch.frexp(largest.clamp(1e-30, 1e30)).exponent)[:, None]

        def product(group: tuple[int, ...]) -> Tensor:
            return _symmetric_product(features(group) * unit.to(features(group)))

        gram = self.stop.exact_sum_bounded(
            product, (*shape, self.width), rows * (largest[:, None] * unit).amax(), parts
        )
        return gram.div_(unit).div_(unit.mT)


class _Regression:
    """The regression of one layer; coefficients are [groups, outputs, features + 1], the bias being the last."""

    def __init__(self, stop: SynapseStop) -> None:
        self.stop = stop
        self.rows = _Rows(stop)
        self.module: Any = stop.module
        self.groups = self.rows.groups
        weight = self.module.weight.detach().double()
        bias = weight.new_zeros(len(weight)) if self.module.bias is None else self.module.bias.detach().double()
        self.site = stop.site if stop.site is not None and _is_along_outputs(stop, stop.site) else None
        self.start = torch.cat((weight.flatten(1), bias[:, None]), 1).unflatten(0, (self.groups, -1))
        self.best = self.start

    def solve(self, ridge: float, anchor: float, iterations: int) -> None:
        """Lower the objective from the present weights on, and remember the best."""
        gram = self.rows.gram(self.rows.features)
        power = gram.diagonal(dim1=1, dim2=2)[:, :-1].mean(1, keepdim=True)
        # The smallest number keeps a layer that never saw a spike regular. Of the ridge the bias is free.
        ridges = (ridge * power + torch.finfo(torch.float32).tiny).expand(-1, gram.shape[1]).clone()
        ridges[:, -1] = 0.0
        penalty = torch.diag_embed(ridges)  # a quadratic form of what changes
        if anchor:
            penalty += anchor * self.rows.gram(self.rows.true_features)
        factor = _cholesky(gram + penalty)
        least, now = torch.inf, self.start
        for _ in range(iterations + 1):
            change = now - self.start
            error, cross = self.stop.exact_sum(partial(self._errors, now), self.stop.groups)
            loss = float((change @ penalty * change).sum() + error)
            if not loss < least:
                break
            least, self.best = loss, now
            now = torch.cholesky_solve((cross + self.start @ penalty).mT, factor).mT

    def error(self) -> Tensor:
        """Return the sum of the squared errors of the present weights."""
        return self.stop.exact_sum(lambda group: self._errors(self.start, group)[:1], self.stop.groups)[0]

    def _errors(self, now: Tensor, group: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return the squared error of coefficients on a group, and the products of their target outputs with x."""
        x, others = self.rows.features(group), self.rows.other_operands(group)
        y = x @ now.mT.to(x.dtype) + others
        nearest = self._nearest_acceptable(y, self.rows.target(group))
        return (y - nearest).square().sum().double(), (nearest - others).mT @ x

    def _nearest_acceptable(self, y: Tensor, target: Tensor) -> Tensor:
        """Return the current nearest to ``y`` of those for which the site emits what it emits for ``target``."""
        site = self.site
        if site is None:
            return target
        top = (site.threshold * site.spec.levels).to(y)
        if top.dim():
            top = top.view(self.groups, 1, -1)
        below = torch.where(target <= 0, y.clamp(max=0), target)
        return torch.where(target >= top, torch.maximum(y, top), below)

    def install(self) -> None:
        """Give the layer the best weights found."""
        if self.best is self.start:
            return
        old = self.module.weight
        for name, value in (("weight", self.best[..., :-1].reshape(old.shape)), ("bias", self.best[..., -1].flatten())):
            setattr(self.module, name, nn.Parameter(value.to(old.dtype), requires_grad=old.requires_grad))


def _is_along_outputs(stop: SynapseStop, site: SpikingSite) -> bool:
    """Return whether a site has one threshold, or one for each output of the layer before it."""
    shape = graph.info(stop.compared_at).shape
    dims = len(shape) if isinstance(shape, torch.Size) else 2
    return site.threshold.dim() == 0 or site.dim % dims == (dims - 1 if isinstance(stop.module, nn.Linear) else 1)


def _cholesky(matrices: Tensor) -> Tensor:
    """Return the Cholesky factors of symmetric matrices [groups, n, n] that are positive but for rounding.

    Where a spiking layer sends a group nothing, and the ANN always the same, its matrix is one of low rank, and may
    come out with a negative eigenvalue; its diagonal then grows by as small a part as helps.
    """
    factor, failed = torch.linalg.cholesky_ex(matrices)
    weak = failed > 0
    for part in LARGER_DIAGONAL:
        if not failed.any():
            return factor
        more = weak[:, None] * part * matrices.diagonal(dim1=1, dim2=2)
        factor, failed = torch.linalg.cholesky_ex(matrices + torch.diag_embed(more))
    return factor if not failed.any() else torch.linalg.cholesky(matrices)  # which raises


def _symmetric_product(x: Tensor) -> Tensor:
    """Return ``x.mT @ x``, of which what lies below blocks on the diagonal is copied from above."""
    width = x.shape[-1]
    product = x.new_empty(*x.shape[:-2], width, width)
    for first in range(0, width, BLOCK):
        last = min(first + BLOCK, width)
        rows = x[..., first:last].mT @ x[..., first:]
        product[..., first:last, first:] = rows
        product[..., last:, first:last] = rows[..., last - first :].mT
    return product


def patches(x: Tensor, module: Any, positions: tuple[slice, ...] = ()) -> Tensor:
    """Return what each output position of a layer (of those chosen) reads, [groups, rows, features of a group]."""
    if isinstance(module, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    kernel = list(zip(module.kernel_size, module.dilation, strict=True))
    if module.padding == "same":
        totals = [d * (k - 1) for k, d in kernel]
        margins = [(total // 2, total - total // 2) for total in totals]
    else:
        margins = [(0, 0)] * len(kernel) if module.padding == "valid" else [(p, p) for p in module.padding]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, [margin for pair in reversed(margins) for margin in pair], mode=mode)
    for dim, ((k, d), stride) in enumerate(zip(kernel, module.stride, strict=True), start=2):
        x = x.unfold(dim, d * (k - 1) + 1, stride)[..., ::d]
    x = x[(slice(None), slice(None), *positions)]
    x = x.unflatten(1, (module.groups, -1))  # [N, groups, channels, positions ..., kernel ...]
    places, offsets = range(3, 3 + len(kernel)), range(3 + len(kernel), x.dim())
    return x.permute(1, 0, *places, 2, *offsets).flatten(1, 1 + len(kernel)).flatten(2)


register_tuner("weight_compensation", WeightCompensation)
