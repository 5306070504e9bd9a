"""Integrate and fire: binary, signed and multi-level spikes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from numbers import Real

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.neurons.base import Heaviside, Neuron, State, require_lookahead
from conversion_ext.types import Family, Reset

__all__ = ["IF", "BurstIF", "SignedEncoder", "SignedIF"]


@dataclass(frozen=True)
class IF(Neuron):
    """Integrate and fire: ``m = v + x; s = [m >= 1]; v = m - s`` (soft) or ``v = m (1 - s)`` (hard reset).

    A constant input z with soft reset and ``0 <= v_init < 1`` gives ``clamp(floor(T z + v_init), 0, T)``
    spikes in T steps; ``v_init = 1/2`` makes that rounding instead of flooring (Bu et al., AAAI 2022).

    ``lookahead`` d > 0: a converted site of such neurons starts d steps behind its input and fires towards ``k / T`` of
    the total that its first ``k + d`` inputs let it expect (see ``LookAhead``). Use it where trains are uneven and some
    latency can be spared: a run of T steps decides ``d`` steps later for every site behind the first. With
    ``d >= T - 1`` counts are those of constant current. The neuron itself stays as it is.

    ``floor``: after the reset the potential is raised to it, ``v = max(v, floor)``, in thresholds and at most 0. Use it
    where a chip has few bits for potentials: ``floor=-1.0`` is what DYNAP-CNN and sinabs do, and differs in hardly a
    spike. ``strict``: a spike needs ``m > 1``, as on Loihi 2. Both follow published rules of chips; neither is of use
    elsewhere.
    """

    v_init: float = 0.5
    reset: Reset = Reset.SUBTRACT
    lookahead: int = field(default=0, kw_only=True)
    floor: float | None = field(default=None, kw_only=True)
    strict: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        require(isinstance(self.reset, Reset), f"IF(reset={self.reset!r}): use Reset.SUBTRACT or Reset.ZERO.")
        self._require_fraction()
        require_lookahead("IF", self.lookahead)
        require(
            self.lookahead == 0 or self.reset is Reset.SUBTRACT,
            f"{self}: looking ahead counts what was not yet sent, which a hard reset forgets; use Reset.SUBTRACT.",
        )
        require(
            self.floor is None
            or (isinstance(self.floor, Real) and not isinstance(self.floor, bool) and -torch.inf < self.floor <= 0),
            f"IF(floor={self.floor!r}): potentials stop at a finite number of thresholds, at most 0, or None for none.",
        )
        require(isinstance(self.strict, bool), f"IF(strict={self.strict!r}): use True or False.")
        require(
            self.lookahead == 0 or self.floor is None,
            f"{self}: looking ahead counts what was not yet sent, which a floor forgets; leave out one of the two.",
        )

    def __repr__(self) -> str:
        """Name what is not as usual."""
        usual = {"lookahead": 0, "floor": None, "strict": False}
        more = "".join(f", {n}={getattr(self, n)!r}" for n, value in usual.items() if getattr(self, n) != value)
        return f"IF(v_init={self.v_init!r}, reset={self.reset!r}{more})"

    @property
    def stock(self) -> bool:
        """Whether it does what IF neurons of the frameworks do: it has no floor and fires at the threshold."""
        return self.floor is None and not self.strict

    @property
    def ahead(self) -> int:
        """How many steps a site lags behind its input."""
        return self.lookahead

    def hosting(self, neuron: Neuron) -> Neuron:
        """Return ``neuron``, looking ahead as this one does, and with its floor and comparison."""
        own = {"lookahead": self.lookahead, "floor": self.floor, "strict": self.strict}
        return replace(neuron, **own) if isinstance(neuron, IF) else neuron

    def step(self, x: Tensor, state: State, heaviside: Heaviside) -> tuple[Tensor, State]:
        """Charge, fire, reset."""
        m = state[0] + x
        s = 1 - heaviside(1 - m) if self.strict else heaviside(m - 1)
        v = m - s if self.reset is Reset.SUBTRACT else m * (1 - s)
        return s, (v if self.floor is None else v.clamp_min(self.floor),)


@dataclass(frozen=True)
class SignedIF(Neuron):
    """IF with soft reset that takes a spike back: ``s = -1`` where ``m < 0`` and more spikes than none were sent.

    ``m = v + x; s = [m >= 1] - [m < 0 and N > 0]; v = m - s; N = N + s`` with N the net spikes so far.
    Spikes are {-1, 0, 1}, the running count never falls below 0, so the neuron still computes a ReLU.

    ``pairs=True`` makes two binary neurons of each: the on neuron sends where ``m >= 1``, the off one where ``m < 0``
    and N > 0, through the same weights with the opposite sign. Both get the same current and, through a synapse between
    the two, what the other sends; x, spikes and state are [N, 2, ...]. A converted site passes on minus off, so
    networks compute what they do with signed spikes. Use it where a chip has binary spikes only and can spare neurons.
    """

    pairs: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self._require_fraction()
        require(isinstance(self.pairs, bool), f"SignedIF(pairs={self.pairs!r}): use True or False.")

    def __repr__(self) -> str:
        """Name the pairs where there are some."""
        return f"SignedIF(v_init={self.v_init!r}{', pairs=True' if self.pairs else ''})"

    @property
    def members(self) -> int:
        """How many neurons it is."""
        return 2 if self.pairs else 1

    @property
    def state(self) -> tuple[str, ...]:
        """The potential and the net number of spikes."""
        return ("v", "spike_count")

    @property
    def family(self) -> Family:
        """The values its spikes take."""
        return Family.BINARY if self.pairs else Family.SIGNED

    def step(self, x: Tensor, state: State, heaviside: Heaviside) -> tuple[Tensor, State]:
        """Charge, fire or take a spike back, count."""
        v, count = state
        m = v + x
        if self.pairs:
            on, off = heaviside(m[:, 0] - 1), (1 - heaviside(m[:, 1])) * (count[:, 1] > 0)
            net = (on - off).unsqueeze(1)
            return torch.stack((on, off), 1), (m - net, count + net.detach())
        s = heaviside(m - 1) - (1 - heaviside(m)) * (count > 0)
        # The count only decides whether a spike may be taken back: no gradient belongs to it.
        return s, (m - s, count + s.detach())


@dataclass(frozen=True)
class BurstIF(Neuron):
    """IF that sends up to ``max_spikes`` spikes at once: ``m = v + x; s = clamp(floor(m), 0, max_spikes); v = m - s``.

    Use it when the target takes several spikes per step: it comes nearest to the ANN at T of 1 to 4.

    A constant input z with ``0 <= v_init < 1`` gives ``clamp(floor(T z + v_init), 0, T max_spikes)`` spikes in T
    steps. ``signed`` takes spikes back, as many as are too many but never more than were sent (N):
    ``s = clamp(floor(m), -min(N, max_spikes), max_spikes)``; with one spike per step the two are IF and SignedIF.
    The threshold is that of one spike, ``max_spikes`` times smaller than what a step can emit; a spike is one synaptic
    event, so a burst of k costs k. Gradient: the framework's surrogate at the threshold nearest to m.

    >>> BurstIF(3)
    BurstIF(v_init=0.5, max_spikes=3, signed=False)

    Reference: Li, Zeng, IJCAI 2022 (burst); the same quantizer as group neurons (Lv et al., ICASSP 2024) and, for
    ``max_spikes = 2^n - 1``, as multi-threshold neurons (Zhang et al., AAAI 2026).
    """

    v_init: float = field(default=0.5, kw_only=True)
    max_spikes: int = 15
    signed: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self._require_fraction()
        require(
            isinstance(self.max_spikes, int) and not isinstance(self.max_spikes, bool) and self.max_spikes >= 1,
            f"BurstIF(max_spikes={self.max_spikes!r}): the most spikes of one step are an integer >= 1.",
        )
        require(isinstance(self.signed, bool), f"BurstIF(signed={self.signed!r}): use True or False.")

    @property
    def state(self) -> tuple[str, ...]:
        """The potential, and where spikes can be taken back their net number."""
        return ("v", "spike_count") if self.signed else ("v",)

    @property
    def family(self) -> Family:
        """The values its spikes take."""
        return Family.MULTI_LEVEL

    @property
    def levels(self) -> float:
        """The most spikes of one step."""
        return self.max_spikes

    def step(self, x: Tensor, state: State, heaviside: Heaviside) -> tuple[Tensor, State]:
        """Charge, send as many spikes as there are whole thresholds, or take some back, count."""
        m = state[0] + x
        least = -state[1].clamp_max(self.max_spikes) if self.signed else 0
        if not m.requires_grad:
            s = m.floor().clamp_max_(self.max_spikes).clamp_min_(least)
        else:
            # The threshold nearest to m decides between the number below it and its own: the same, with a gradient.
            nearest = m.detach().round().clamp_max_(self.max_spikes).clamp_min_(least + 1)
            s = nearest - 1 + heaviside(m - nearest)
        return s, (m - s, *(count + s.detach() for count in state[1:]))


@dataclass(frozen=True)
class SignedEncoder(Neuron):
    """Encode a signed value: ``m = v + x; s = [m >= 1/2] - [m <= -1/2]; v = m - s``.

    Use it for values of either sign; converted networks hold it behind LeakyReLU and in relays.

    Spikes are {-1, 0, 1} and their running sum follows the running sum of x; the backlog |v| stays at or
    below 1/2 while |x| <= 1. What a differential operator emits exceeds max |f| now and then, so the threshold is
    ``headroom`` times max |f| over the calibration data: room to catch up, without which the error does not fall.
    With ``headroom=None`` the normalizer of the recipe chooses it from the distribution of |f|, for each channel where
    its granularity says so: smaller errors at few steps, but values beyond the threshold saturate for ever. Use that
    for transformers at few steps.

    ``pairs=True`` makes two binary neurons of each, as in :class:`SignedIF`: the on neuron sends where ``m >= 1/2``,
    the off one where ``m <= -1/2``, through the same weights with the opposite sign; x, spikes and state are
    [N, 2, ...].
    """

    v_init: float = 0.0
    headroom: float | None = 1.25
    pairs: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        require(
            self.headroom is None or (isinstance(self.headroom, Real) and self.headroom >= 1),
            f"SignedEncoder(headroom={self.headroom!r}): the threshold is at least max |f|, so headroom is 1 or more; "
            "None leaves the threshold to the recipe's normalizer.",
        )
        require(
            isinstance(self.v_init, Real) and -0.5 <= self.v_init <= 0.5,
            f"SignedEncoder(v_init={self.v_init!r}): the initial potential is a fraction of the threshold "
            "in [-1/2, 1/2].",
        )
        require(isinstance(self.pairs, bool), f"SignedEncoder(pairs={self.pairs!r}): use True or False.")

    @property
    def members(self) -> int:
        """How many neurons it is."""
        return 2 if self.pairs else 1

    @property
    def family(self) -> Family:
        """The values its spikes take."""
        return Family.BINARY if self.pairs else Family.SIGNED

    @property
    def lowest(self) -> float:
        """The least that it emits on average, in spikes per step."""
        return -1

    def step(self, x: Tensor, state: State, heaviside: Heaviside) -> tuple[Tensor, State]:
        """Charge, fire on either side, reset."""
        m = state[0] + x
        if self.pairs:
            on, off = heaviside(m[:, 0] - 0.5), heaviside(-m[:, 1] - 0.5)
            return torch.stack((on, off), 1), (m - (on - off).unsqueeze(1),)
        s = heaviside(m - 0.5) - heaviside(-m - 0.5)
        return s, (m - s,)
