"""A recipe: every choice of a conversion as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from conversion_ext.capture.demands import Demand, NoSignedSites
from conversion_ext.encoders import ConstantCurrent, Encoder
from conversion_ext.errors import require
from conversion_ext.neurons import IF, Neuron, SignedEncoder, WeightedIF
from conversion_ext.nn.max_pool import METHODS as POOL_METHODS
from conversion_ext.nn.softmax import METHODS as SOFTMAX_METHODS
from conversion_ext.normalizers import Normalizer, Percentile, normalizers
from conversion_ext.operators.sites import Site, SiteKind
from conversion_ext.readouts.base import Readout
from conversion_ext.readouts.mean_output import MeanOutput
from conversion_ext.tuners.base import SteppingTuner, Tuner, tuners
from conversion_ext.types import SPIKES, Family, Reset

__all__ = ["Recipe"]

POOLS = ("average", "sum")


@dataclass(frozen=True)
class Recipe:
    """Every choice of a conversion; ``dataclasses.replace`` varies one of them.

    ``family``: what the neurons of ReLU sites emit, so that binary and signed methods are never mixed up;
    ``signed_encoder`` makes spikes of values of either sign (LeakyReLU, PReLU, relays). ``relay`` asks for relays
    as ``convert(relay=True)`` does. ``block``: the steps for which a site waits in a simulation (see
    ``simulate``), None for all T; tuners tune for that. A ``readout`` that is ``spiking`` gets neurons behind the last
    layer; ``copies`` m makes every ReLU site of m neurons for each activation, {site: m} those named: the same current,
    initial potentials spread by 1/m, so that together they count to m T (see ``SpikingSite``). ``pool="sum"`` lets
    average pools pass every spike on, as chips have them, with their divisor in the next weights. ``demands`` are what
    the method asks of a network, which is refused where it does not meet them. Normalizers and tuners may be given by
    the names they are registered under: ``Recipe(normalizer="maximum", tuners=("bias_correction",))``.

    >>> Recipe(normalizer=Percentile(99.9), neuron=IF(v_init=0.0)).max_pool
    'count'
    """

    normalizer: Normalizer = field(default_factory=Percentile)
    neuron: Neuron = field(default_factory=IF)
    max_pool: str = "count"
    softmax: str = "membrane"
    tuners: tuple[Tuner, ...] = ()
    encoder: Encoder = field(default_factory=ConstantCurrent)
    readout: Readout = field(default_factory=MeanOutput)
    family: Family = Family.BINARY
    signed_encoder: SignedEncoder = field(default_factory=SignedEncoder)
    relay: bool = False
    block: int | None = 1
    demands: tuple[Demand, ...] = ()
    copies: int | Mapping[str, int] = 1
    pool: str = "average"

    def __post_init__(self) -> None:
        if isinstance(self.normalizer, str):
            object.__setattr__(self, "normalizer", normalizers.get(self.normalizer)())
        if isinstance(self.tuners, tuple | list):
            instances = (tuners.get(tuner)() if isinstance(tuner, str) else tuner for tuner in self.tuners)
            object.__setattr__(self, "tuners", tuple(instances))
        for name, kind in (("normalizer", Normalizer), ("neuron", Neuron), ("encoder", Encoder), ("readout", Readout)):
            value = getattr(self, name)
            require(
                isinstance(value, kind),
                f"Recipe({name}={value!r}): give a value of {kind.__name__.lower()}s, not its class or name.",
                TypeError,
            )
        for name, allowed in (("max_pool", POOL_METHODS), ("softmax", SOFTMAX_METHODS), ("pool", POOLS)):
            value = getattr(self, name)
            require(value in allowed, f"Recipe({name}={value!r}): choose one of {', '.join(allowed)}.")
        require(
            isinstance(self.tuners, tuple) and all(isinstance(tuner, Tuner) for tuner in self.tuners),
            f"Recipe(tuners={self.tuners!r}): give a tuple of tuners such as (BiasCorrection(),).",
            TypeError,
        )
        require(
            isinstance(self.demands, tuple) and all(isinstance(demand, Demand) for demand in self.demands),
            f"Recipe(demands={self.demands!r}): give a tuple of demands such as (NoBias(),).",
            TypeError,
        )
        require(
            self.block is None or (isinstance(self.block, int) and self.block >= 1),
            f"Recipe(block={self.block!r}): give a number of steps >= 1, or None for all T.",
        )
        for tuner in self.tuners:
            tuner.check(self.neuron)
        pacing = [tuner for tuner in self.tuners if isinstance(tuner, SteppingTuner)]
        require(len(pacing) <= 1, f"Recipe(tuners=...): {pacing} each decide how sites are stepped; choose one.")
        counting = [tuner for tuner in self.tuners if tuner.counts_steps]
        require(
            not (pacing and counting),
            f"Recipe(tuners=...): {counting} sets values for single steps, which {pacing} shifts; leave out one.",
        )
        clocked = self.neuron.ahead > 0 or self.neuron.family is Family.WEIGHTED
        require(
            not clocked or (not pacing and not counting and self.block == 1),
            f"Recipe(neuron={self.neuron!r}) looks ahead, and block={self.block} or {[*pacing, *counting]} set the "
            "pace of sites as well; leave them out.",
        )
        require(
            self.family in list(Family), f"Recipe(family={self.family!r}): choose one of {', '.join(map(str, SPIKES))}."
        )
        object.__setattr__(self, "family", Family(self.family))
        require(
            self.neuron.family == self.family,
            f"Recipe(family={self.family.value!r}): {type(self.neuron).__name__} emits {self.neuron.family.value} "
            "spikes; make the two agree.",
        )
        weighted = self.signed_encoder.family is Family.WEIGHTED
        require(
            not weighted or self.family is Family.WEIGHTED,
            f"Recipe(signed_encoder={self.signed_encoder!r}) sends spikes weighted in time, and {self.neuron!r} does "
            'not; take WeightedIF() and family="weighted".',
        )
        if self.family is Family.WEIGHTED and not weighted and NoSignedSites() not in self.demands:
            object.__setattr__(self, "demands", (*self.demands, NoSignedSites()))
        require(
            not (self.readout.spiking and self.family in (Family.MULTI_LEVEL, Family.WEIGHTED)),
            f"Recipe(readout={self.readout!r}) counts single spikes, and those of {self.neuron!r} are worth several; "
            "read MeanOutput().",
        )

        self._check_copies(pacing)

    def _check_copies(self, pacing: Sequence[SteppingTuner]) -> None:
        numbers = [*self.copies.values()] if isinstance(self.copies, Mapping) else [self.copies]
        require(
            all(isinstance(m, int) and not isinstance(m, bool) and m >= 1 for m in numbers),
            f"Recipe(copies={self.copies!r}): give a number of neurons >= 1 for each activation, or {{site: number}}.",
        )
        soft = isinstance(self.neuron, WeightedIF) or (
            isinstance(self.neuron, IF) and self.neuron.reset is Reset.SUBTRACT
        )
        require(
            max(numbers, default=1) == 1 or (soft and not pacing and not self.readout.spiking),
            f"Recipe(copies={self.copies!r}) needs IF or WeightedIF with soft reset, tuners that do not act while "
            f"simulating and a readout of currents; here are {self.neuron}, {[*pacing]} and {self.readout}.",
        )

    def check_sites(self, sites: Sequence[Site]) -> None:
        """Raise where ``copies`` names a site that is not there."""
        known = {site.key for site in sites if site.kind is not SiteKind.SIGNED}
        unknown = sorted(self.copies.keys() - known) if isinstance(self.copies, Mapping) else []
        require(not unknown, f"copies= names {unknown}, and the sites are {', '.join(sorted(known))}.")

    def copies_of(self, site: Site) -> int:
        """Return how many neurons stand for an activation of ``site``."""
        if site.kind is SiteKind.SIGNED:
            return 1
        return self.copies.get(site.key, 1) if isinstance(self.copies, Mapping) else self.copies

    def timed(self, T: int | None) -> Recipe:
        """Return this recipe for runs of T steps, with a neuron for so many."""
        return replace(self, neuron=self.neuron.timed(T), signed_encoder=self.signed_encoder.timed(T))

    def block_of(self, T: int, block: int | None = None) -> int:
        """Return the steps for which a site waits in a simulation of T steps, ``block`` of them where that is given."""
        block = self.block if block is None else block
        block = T if block is None else block
        require(
            isinstance(block, int) and block >= 1 and T % block == 0,
            f"block={block!r}: a block is a number of steps that divides T={T}; give a divisor, 1 for single steps.",
        )
        return block

    def neuron_of(self, site: Site) -> Neuron:
        """Return the neuron for a ReLU site: the recipe's, or the one that its activation was trained for."""
        return self.neuron if site.neuron is None else self.neuron.hosting(site.neuron)
