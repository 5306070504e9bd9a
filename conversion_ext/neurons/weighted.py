"""Spikes weighted in time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.neurons.base import Heaviside, Neuron, State, require_lookahead
from conversion_ext.neurons.integrate_and_fire import IF, SignedEncoder
from conversion_ext.types import Family

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["WeightedEncoder", "WeightedIF", "weights_for"]

REPEATED = (4, 8, 1, 2, 16)  # in this order, with every step beyond five
MOST = 1 << 53  # units: float64 tells numbers of them apart up to here


class _WeightedInTime(Neuron):
    """Base of neurons that send one spike a step whose weight falls with time, ``weights``; None until T is known.

    A run has exactly as many steps as there are weights. The neuron takes increments of the total Z_k that its site
    expects at step k (see ``LookAhead``) as input, and remembers the membrane, ``Z_k`` less what was sent, and how many
    decisions were taken, one number per sample. Use it as the base of other such neurons, which define ``thresholds``
    and ``step``.
    """

    lookahead: int

    def _check(self) -> None:
        """Raise for weights that leave gaps; make them a tuple."""
        require_lookahead(type(self).__name__, self.lookahead)
        if self.weights is None:
            return
        given: Any = self.weights
        weights = tuple(given) if isinstance(given, Iterable) else ()
        powers = all(type(w) is int and w >= 1 and w & (w - 1) == 0 for w in weights)
        require(
            bool(weights)
            and powers
            and weights[-1] == 1
            and all(a in (b, 2 * b) for a, b in zip(weights, weights[1:], strict=False)),
            f"{type(self).__name__}(weights={given!r}): give powers of two that end at 1, each the next one or twice "
            "it, such as (4, 2, 2, 1); so every number of units up to their sum can be sent.",
        )
        require(
            sum(weights) <= MOST,
            f"{type(self).__name__}: the weights of {len(weights)} steps begin with 2^{max(weights).bit_length() - 1}, "
            "and numbers of units are exact up to their sum of 2^53; take fewer steps (beyond 10 a rate is better), or "
            "smaller weights=.",
        )
        object.__setattr__(self, "weights", weights)

    @property
    def state(self) -> tuple[str, ...]:
        """The membrane, and how many decisions were taken, one number per sample."""
        return ("v", "decisions")

    @property
    def family(self) -> Family:
        """The values its spikes take, by their weights."""
        return Family.WEIGHTED

    @property
    def levels(self) -> float:
        """The most that a step emits on average, in units."""
        weights = self.known
        return sum(weights) / len(weights)

    @property
    def ahead(self) -> int:
        """How many steps a site lags behind its input."""
        return self.lookahead

    def timed(self, T: int | None) -> Self:
        """Return this neuron with weights for T steps."""
        if T is None:
            require(self.weights is not None, f"{self} takes its weights from T: convert with T=, or name weights=.")
            return self
        if self.weights is None:
            return replace(self, weights=weights_for(T))
        require(
            len(self.weights) == T,
            f"T={T}: {self} sends a spike of each of its {len(self.weights)} weights once; run {len(self.weights)} "
            "steps, or convert with other weights.",
        )
        return self

    def start(self, v: Tensor) -> State:
        """Return the membrane and no decisions."""
        return v, v.new_zeros(len(v), *[1] * (v.dim() - 1))

    def _now(self, state: State, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return membrane, weight and threshold of this step, and the decisions after it; no spike after the last."""
        v, decisions = state
        k, weights = decisions.long(), self.known
        weight, threshold = (v.new_tensor(row)[k] for row in ((*weights, 1), (*self.thresholds, torch.inf)))
        return v + x, weight, threshold, (decisions + 1).clamp_max(len(weights))

    @property
    def thresholds(self) -> tuple[float, ...]:
        """What the membrane is compared with at each step, in units."""
        raise NotImplementedError

    @property
    def known(self) -> tuple[int, ...]:
        """The weights; raise where they wait for a T."""
        require(self.weights is not None, f"{self} has no weights yet: convert with T=, or name weights=.")
        assert self.weights is not None
        return self.weights


@dataclass(frozen=True)
class WeightedIF(_WeightedInTime):
    """One binary spike a step whose weight falls with time: T steps tell ``w_1 + ... + w_T + 1`` activations apart.

    At step k a site expects a total Z_k of its input (see ``LookAhead``) and fires towards it; E is what it has sent:

        s_k = [Z_k + v_init - E >= (w_k + r_k + 1) / 2],  r_k = w_{k+1} + ... + w_T;   E = E + w_k s_k.

    A unit is the last weight, 1. Where Z_k is exact that is the greedy expansion of the clipped total, rounded: within
    half a unit. A decision not taken can be made good later by as much as ``r_k`` exceeds w_k. Use it where few steps
    matter most and the receiver can scale by a power of two at each step. ``weights=None`` takes ``weights_for(T)``
    with the T of the conversion; a run has exactly as many steps as there are weights. ``lookahead=0`` is worse than a
    rate, since the heaviest decision is blind; ``lookahead=2`` halves what EfficientNet-Lite0 loses at 8 steps. Beyond
    10 steps take a further step of look-ahead, or a rate: what a decision sees is then a smaller part of its input, so
    that 16 steps may err more than 8.

    The neuron itself takes increments of Z_k as input and remembers the membrane ``Z_k + v_init - E``. The gradient
    is the framework's surrogate of the distance from the threshold in units of the weight.

    >>> WeightedIF(weights=(4, 2, 2, 1)).levels
    2.25

    Related: weighted spikes (Kim et al., 2018); few spikes (Stoeckl, Maass, 2021, where layers wait); one silent step
    in front of ternary spikes (Gu et al., 2024).
    """

    v_init: float = 0.5
    weights: tuple[int, ...] | None = field(default=None, kw_only=True)  # type: ignore[assignment]
    lookahead: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        self._require_fraction()
        self._check()

    def hosting(self, neuron: Neuron) -> Neuron:
        """Return this neuron also where the activation was trained for IF."""
        require(
            type(neuron) is IF,
            f"{self} cannot take the place of {neuron}, for which a layer was trained; use a recipe of that neuron.",
        )
        return self

    def step(self, x: Tensor, state: State, heaviside: Heaviside) -> tuple[Tensor, State]:
        """Charge, decide, take away what was sent; silent after the last weight."""
        m, weight, threshold, decisions = self._now(state, x)
        s = heaviside((m - threshold) / weight)
        return s, (m - weight * s, decisions)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """What the membrane is compared with at each step, in units."""
        weights = self.known
        return tuple((w + sum(weights[k + 1 :]) + 1) / 2 for k, w in enumerate(weights))


@dataclass(frozen=True)
class WeightedEncoder(_WeightedInTime, SignedEncoder):
    """Encode a signed value in spikes whose weight falls with time.

    ``s = on - off, on = [m >= w_k / 2], off = [m <= -w_k / 2]`` with ``m = Z_k - E``, what the site expects of its
    total at step k less what was sent; then ``E = E + w_k s``. ``pairs=True`` makes on and off two binary neurons.

    Use it in recipes of :class:`WeightedIF` for networks with values of either sign, such as transformers. T steps
    tell ``2 (w_1 + ... + w_T) + 1`` values apart, within half a unit, the last weight. A wrong decision, taken or not,
    can be made good as long as it is off by no more than what the later weights add up to.

    The fields are those of :class:`SignedEncoder` (the threshold is the normalizer's) and of :class:`WeightedIF`;
    of pairs, x, spikes and state are [N, 2, ...].
    """

    headroom: float | None = None
    weights: tuple[int, ...] | None = field(default=None, kw_only=True)  # type: ignore[assignment]
    lookahead: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check()

    @property
    def lowest(self) -> float:
        """The least that a step emits on average, in units."""
        return -self.levels

    def step(self, x: Tensor, state: State, heaviside: Heaviside) -> tuple[Tensor, State]:
        """Charge, decide on either side, take away what was sent; silent after the last weight."""
        m, weight, threshold, decisions = self._now(state, x)
        on, off = heaviside((m - threshold) / weight), heaviside((-m - threshold) / weight)
        if not self.pairs:
            return on - off, (m - weight * (on - off), decisions)
        on, off = on[:, 0], off[:, 1]
        return torch.stack((on, off), 1), (m - weight * (on - off).unsqueeze(1), decisions)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """What the magnitude of the membrane is compared with at each step, in units."""
        return tuple(w / 2 for w in self.known)


def weights_for(T: int) -> tuple[int, ...]:
    """Return the weights of T steps: halving down to 1 up to T = 5, beyond that some of them twice.

    A weight that is there twice lets an early decision be wrong. At T = 8 on a CIFAR-10 ResNet-20 these weights left a
    relative error of 0.11, 128 to 1 one of 0.15, with an eighth more spikes.

    >>> weights_for(4), weights_for(8)
    ((8, 4, 2, 1), (16, 8, 8, 4, 4, 2, 1, 1))
    """
    halving = [1 << k for k in range(min(T, 5))]
    larger = [1 << k for k in range(5, T - len(REPEATED))]
    return tuple(sorted([*halving, *REPEATED[: max(0, T - 5)], *larger], reverse=True))
