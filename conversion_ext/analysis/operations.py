"""Counts of operations, and models of the energy that they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conversion_ext.tables import Report, Sheet, plain, quantity
from conversion_ext.types import SPIKES, Family

__all__ = ["Energy", "EnergyModel", "FortyFiveNanometres", "LayerCount", "OperationCount"]


@dataclass(frozen=True, repr=False)
class Energy(Report):
    """Energy per sample in ``unit``: of the spiking network, its ANN and its twin; None where the model has none."""

    snn: float
    ann: float | None
    twin: float | None
    model: str
    source: str
    unit: str = "pJ"

    @property
    def ratio(self) -> float | None:
        """How many times the energy of the spiking network the ANN needs."""
        return None if self.ann is None else self.ann / self.snn

    @property
    def sentence(self) -> str:
        """All values in one sentence."""
        beside = "".join(f", {name} {value}" for name, value, _ in self._rows()[1:])
        return f"Energy per sample, {self.model}: spiking {self._rows()[0][1]}{beside} ({self.source})."

    def sheet(self) -> Sheet:
        """Return one row per network, in a unit that suits the size, and the model with its source."""
        header = ("network", "energy per sample", "of the spiking")
        return Sheet(header, self._rows(), f"{self.model}, an estimate", (f"source: {self.source}",))

    def _rows(self) -> list[tuple[str, str, str]]:
        known = [("spiking", self.snn), ("ANN", self.ann), ("twin", self.twin)]
        return [
            (name, quantity(value, self.unit), f"{value / self.snn:.3g} x" if self.snn else "")
            for name, value in known
            if value is not None
        ]


@dataclass(frozen=True)
class EnergyModel:
    """Base of all energy models."""

    def energy(self, count: OperationCount) -> Energy:
        """Return the energy of the counted operations of one sample."""
        raise TypeError(f"{type(self).__name__} must define energy().")


@dataclass(frozen=True)
class FortyFiveNanometres(EnergyModel):
    """Arithmetic alone, float32 at 45 nm: ``snn = ac synops + mac analog_macs``, ``ann = mac macs``; 4.6 and 0.9 pJ.

    A product with a b-bit activation is at most b additions, so where the spiking network sees spikes the twin costs
    ``min(b ac, mac)`` per weight, elsewhere ``mac``.

    Reference: Horowitz, ISSCC 2014 (multiplication 3.7 pJ, addition 0.9 pJ).
    """

    mac: float = 4.6
    ac: float = 0.9

    def energy(self, count: OperationCount) -> Energy:
        """Return the energy of arithmetic."""
        product = min(count.bits * self.ac, self.mac)
        twin = sum(layer.macs * (product if layer.sees in SPIKES else self.mac) for layer in count.layers)
        return Energy(
            self.ac * count.synops + self.mac * count.analog_macs,
            self.mac * count.macs,
            twin,
            f"45 nm arithmetic, {count.bits}-bit twin",
            "Horowitz, ISSCC 2014",
        )


NOT_COUNTED = (
    "pooling, sums of tensors, softmax and other graded functions",
    "biases and constant currents, which a neuron adds in its update",
    "making the input's spikes, routing, idle hardware, and memory unless the energy model includes them",
)
ESTIMATE = "This is an estimate from counted operations and published constants; nothing was measured on hardware."


@dataclass(frozen=True)
class LayerCount:
    """What one weight layer, scale or product of two values does for one sample in T steps; zero weights do nothing.

    ``sees``: the family of its input; ``macs``: of the ANN, once; ``events``: input spikes times the outputs each
    reaches, borders and strides taken exactly; ``synops``: the same with a burst of k counted k times; ``analog_macs``:
    multiplications with inputs that are no spikes and not 0, once where the input does not depend on time, those of
    products of two values at every step; ``weights``: how many are not 0; ``outputs``: how many values it computes.
    """

    key: str
    sees: Family
    macs: float
    events: float
    synops: float
    analog_macs: float
    weights: int
    outputs: int


@dataclass(frozen=True, repr=False)
class OperationCount(Report):
    """Operations of one sample (mean over those given) in T steps; ``str()`` is a report.

    ``layers``: one per weight layer, scale or product of two values, in graph order; ``neurons``: {site: number of
    neurons}; ``spikes``: {site: spikes} (signed and multi-level ones by magnitude); ``bits``: of the activations of the
    twin, an ANN with as many levels as T steps; ``macs``: of the ANN; ``not_counted``: what the numbers leave out.
    """

    layers: tuple[LayerCount, ...]
    neurons: Mapping[str, int]
    spikes: Mapping[str, float]
    T: int
    bits: int
    macs: float
    not_counted: tuple[str, ...] = NOT_COUNTED

    @property
    def synops(self) -> float:
        """Synaptic operations, one addition of a weight each; a burst of k spikes counts k."""
        return sum(layer.synops for layer in self.layers)

    @property
    def events(self) -> float:
        """Synaptic events: as ``synops``, but a burst is one event that carries a number."""
        return sum(layer.events for layer in self.layers)

    @property
    def analog_macs(self) -> float:
        """Multiplications that the spiking network still does: image's layer, inputs that are no spikes, products."""
        return sum(layer.analog_macs for layer in self.layers)

    @property
    def spike_driven(self) -> float:
        """Which share of the multiply-adds, products of two values included, works on spikes in the spiking network."""
        driven = sum(layer.macs for layer in self.layers if layer.sees in SPIKES and not layer.analog_macs)
        return driven / max(1.0, sum(layer.macs for layer in self.layers))

    @property
    def updates(self) -> float:
        """Neuron updates: every neuron at every step."""
        return sum(self.neurons.values()) * self.T

    def energy(self, model: EnergyModel | None = None) -> Energy:
        """Return the energy of the spiking network, its ANN and its twin; by default that of arithmetic at 45 nm."""
        return (model or FortyFiveNanometres()).energy(self)

    def sheet(self) -> Sheet:
        """Return one row per weight layer, and what the numbers leave out."""
        rows = [
            (r.key, str(r.sees), *(f"{v:,.0f}" for v in (r.macs, r.synops, r.events, r.analog_macs)))
            for r in self.layers
        ]
        rows += [("sum", "", *(f"{v:,.0f}" for v in (self.macs, self.synops, self.events, self.analog_macs)))]
        spikes = sum(self.spikes.values())
        notes = (
            f"{100 * self.spike_driven:.1f} % of the multiply-adds work on spikes.",
            f"Per sample in {self.T} steps: {spikes:,.0f} spikes, {self.updates:,.0f} updates of neurons.",
            self.energy().sentence,
            f"Not counted: {'; '.join(self.not_counted)}.",
            ESTIMATE,
        )
        return Sheet(("layer", "sees", "ANN MACs", "synops", "events", "analog MACs"), rows, "", notes, left=2)

    def to_dict(self) -> dict[str, Any]:
        """Return all values, sums and the energy of arithmetic as plain data."""
        sums = {name: getattr(self, name) for name in ("synops", "events", "analog_macs", "updates")}
        return super().to_dict() | sums | {"energy": plain(self.energy())}
