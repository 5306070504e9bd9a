"""Published energy models, each a frozen value with its source: what counted operations would cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from conversion_ext.analysis.operations import Energy, EnergyModel
from conversion_ext.errors import require

if TYPE_CHECKING:
    from conversion_ext.analysis.operations import OperationCount

__all__ = ["Cao", "DataMovement", "Hu", "Hunsberger"]


@dataclass(frozen=True)
class Cao(EnergyModel):
    """Spikes alone: ``snn = spikes spike_pj``; the constant is that of your hardware, for which no default is known.

    Reference: Cao, Chen, Khosla, IJCV 2015.
    """

    spike_pj: float

    def __post_init__(self) -> None:
        require(self.spike_pj > 0, f"Cao(spike_pj={self.spike_pj!r}): give what one spike costs, a positive number.")

    def energy(self, count: OperationCount) -> Energy:
        """Return the energy of spikes."""
        return Energy(sum(count.spikes.values()) * self.spike_pj, None, None, "spikes", "Cao et al., IJCV 2015")


@dataclass(frozen=True)
class Hu(EnergyModel):
    """``snn = synop_pj (synops + analog_macs)`` against ``ann = flop_pj 2 macs``, with the constants of your platforms.

    The authors' constants (a neuromorphic chip, an FPGA) were not found, so there are no defaults.

    Reference: Hu, Tang, Pan, TNNLS 2021.
    """

    synop_pj: float
    flop_pj: float

    def __post_init__(self) -> None:
        for name in ("synop_pj", "flop_pj"):
            require(getattr(self, name) > 0, f"Hu({name}={getattr(self, name)!r}): give a positive number.")

    def energy(self, count: OperationCount) -> Energy:
        """Return the energy of synaptic and of floating-point operations."""
        snn = self.synop_pj * (count.synops + count.analog_macs)
        return Energy(snn, self.flop_pj * 2 * count.macs, None, "synaptic operations", "Hu et al., TNNLS 2021")


@dataclass(frozen=True)
class Hunsberger(EnergyModel):
    """``snn = 2 analog_macs + synop synops + update updates`` in units of one FLOP, ``ann = 2 macs + neurons``.

    A synaptic operation of neuromorphic hardware costs 0.08, a neuron update 0.25 of a FLOP of conventional hardware;
    the image's layer runs once, on the latter.

    Reference: Hunsberger, Eliasmith, arXiv:1611.05141.
    """

    synop: float = 0.08
    update: float = 0.25

    def energy(self, count: OperationCount) -> Energy:
        """Return the energy in FLOPs."""
        snn = 2 * count.analog_macs + self.synop * count.synops + self.update * count.updates
        ann = 2 * count.macs + sum(count.neurons.values())
        return Energy(snn, ann, None, "neuromorphic", "Hunsberger and Eliasmith, arXiv:1611.05141", "FLOPs")


@dataclass(frozen=True)
class DataMovement(EnergyModel):
    """Arithmetic and memory: int32 at 45 nm, weights, potentials and activations of a layer in SRAMs of their size.

    A synaptic operation reads its weight, reads and writes a potential and adds; a neuron update reads and writes the
    potential; a MAC of the ANN (or of an analog input) reads weight and activation and multiplies; every output of the
    ANN and every spike is written once. An access of 32 bits costs 10, 20, 100 pJ in 8 kB, 32 kB, 1 MB, linear
    between, from 0 at no memory, and never more than the last. Addressing is left out.

    Reference: Lemaire et al., ICONIP 2022, arXiv:2210.13107; SRAM and integer costs from Horowitz, ISSCC 2014.
    """

    add: float = 0.1
    multiply: float = 3.1

    def energy(self, count: OperationCount) -> Energy:
        """Return the energy of arithmetic and memory."""
        snn = ann = 0.0
        for layer in count.layers:
            weights, outputs = self.access(layer.weights), self.access(layer.outputs)
            mac = self.multiply + self.add + 2 * weights
            snn += layer.synops * (self.add + weights + 2 * outputs) + layer.analog_macs * mac
            ann += layer.macs * mac + layer.outputs * outputs
        for key, neurons in count.neurons.items():
            snn += neurons * count.T * (2 * self.access(neurons) + self.add) + count.spikes[key] * self.access(neurons)
        return Energy(snn, ann, None, "arithmetic and memory", "Lemaire et al., arXiv:2210.13107")

    @staticmethod
    def access(words: int) -> float:
        """Return what one access to a memory of so many 32-bit words costs, in pJ."""
        points = ((0.0, 0.0), (8.0, 10.0), (32.0, 20.0), (1024.0, 100.0))
        size = min(words * 4 / 1024, 1024.0)
        (x0, y0), (x1, y1) = next((a, b) for a, b in zip(points, points[1:], strict=False) if size <= b[0])
        return y0 + (y1 - y0) * (size - x0) / (x1 - x0)
