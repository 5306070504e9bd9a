"""What neuromorphic chips take, as published: facts for the rules that compare a converted network with them."""

from __future__ import annotations

from dataclasses import dataclass

from conversion_ext.errors import UnknownNameError, require

__all__ = ["CHIPS", "Chip", "chip_of"]


@dataclass(frozen=True)
class Chip:
    """Facts of one chip with its usual tool chain; None where nothing is published or nothing is asked.

    Attributes:
        source: Where the facts are from.
        layers: Weight layers that it takes, by the names of ``torch.nn``.
        pools: "sum", "average" (either), "max", "global", for each kind that it takes.
        pool_sizes: Windows of pools, the stride being the window.
        scales: Whether a multiplication may stand outside of a weight layer.
        sums: Whether branches may be added.
        neurons_everywhere: Whether neurons must stand behind every weight layer, the last one too.
        neuron: "IF", "LIF" (leak by a shift) or "ReLU" (not temporal).
        resets: "subtract" and "zero", as far as it has them.
        starts: Whether neurons can start from a potential.
        strict: Whether a neuron fires above its threshold only; None where that is not published.
        floors: "none", or "needed" where the tool chain finds no common scale of integers without a lower end.
        spikes: The most spikes of a neuron per step.
        weight_bits: Bits of weights. even: Whether weights of both signs are even, so that one bit is lost.
        state_bits: Bits of the potential. saturates: Whether potentials stop by themselves at either end.
        steps: The most spikes by which a time-free chip tells activations apart.
        kernel: The largest square kernel. strides, padding: What convolutions may have.
        groups: Whether convolutions may have groups.
        biases: Whether weight layers may have biases: "no", "first" (behind it they run ahead of delayed spikes).
        channels, maps, input_size: The most channels, the largest map, the largest input map.
        kernel_memory, neuron_memory: Words of each core, by which layers are placed; a linear layer is a convolution.
        fan_out: The most layers that a layer may send to.
        inputs, hidden, outputs: The most input channels, neurons in all, output neurons.
        events: Whether inputs must be spikes. image: Whether inputs are 8-bit images.
    """

    source: str
    layers: tuple[str, ...]
    pools: tuple[str, ...] = ()
    pool_sizes: tuple[int, ...] | None = None
    scales: bool = False
    sums: bool = False
    neurons_everywhere: bool = True
    neuron: str = "IF"
    resets: tuple[str, ...] = ("subtract", "zero")
    starts: bool = True
    spikes: int | None = None
    strict: bool | None = None
    floors: str = "none"
    weight_bits: int = 8
    even: bool = False
    state_bits: int | None = None
    saturates: bool = False
    steps: int | None = None
    kernel: int | None = None
    strides: tuple[int, ...] | None = None
    padding: int | None = None
    groups: bool = True
    biases: str = "yes"
    channels: int | None = None
    maps: int | None = None
    input_size: int | None = None
    kernel_memory: tuple[int, ...] = ()
    neuron_memory: tuple[int, ...] = ()
    fan_out: int | None = None
    inputs: int | None = None
    hidden: int | None = None
    outputs: int | None = None
    events: bool = True
    image: bool = False


KI = 1024
CHIPS = {
    "speck": Chip(
        source="SynSense Speck 2e/2f and DYNAP-CNN, by the rules of sinabs 3.1.3",
        layers=("Conv2d", "Linear"), pools=("sum",), pool_sizes=(1, 2, 4), strict=False, floors="needed",
        state_bits=16, kernel=16, fan_out=2,
        strides=(1, 2, 4, 8), padding=7, groups=False, channels=1024, maps=64, input_size=128,
        kernel_memory=tuple(n * KI for n in (16, 16, 16, 32, 32, 64, 64, 16, 16)),
        neuron_memory=tuple(n * KI for n in (64, 64, 64, 32, 32, 16, 16, 16, 16)),
    ),
    "loihi2": Chip(
        source="Intel Loihi 2 by lava-dl's netx and lava's bit-accurate CUBA neurons",
        layers=("Conv2d", "Linear"), resets=("zero",), starts=False, spikes=1, strict=True, even=True,
        state_bits=24, saturates=True, biases="first", events=False,
    ),
    "xylo": Chip(
        source="SynSense Xylo A2, by rockpool's design rules",
        layers=("Linear",), neuron="LIF", resets=("subtract",), starts=False, spikes=31, state_bits=16, biases="no",
        inputs=16, hidden=1000, outputs=8,
    ),
    "spinnaker2": Chip(
        source="SpiNNaker 2, by s2_nir and py-spinnaker2",
        layers=("Conv2d", "Linear"), pools=("sum", "average"), starts=False, spikes=1,
    ),
    "akida": Chip(
        source="BrainChip Akida 1, by quantizeml and cnn2snn",
        layers=("Conv2d", "Linear"), pools=("max", "global"), neurons_everywhere=False, neuron="ReLU", weight_bits=4,
        steps=15, kernel=7, strides=(1, 2, 3), events=False, image=True,
    ),
}  # fmt: skip


def chip_of(name: str) -> Chip:
    """Return the facts of the chip called ``name``."""
    require(name in CHIPS, f"target={name!r}: there are {', '.join(CHIPS)}.", UnknownNameError)
    return CHIPS[name]
