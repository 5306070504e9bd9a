"""What the packages that read NIR make of it, as far as it decides what to write for them."""

from __future__ import annotations

from dataclasses import dataclass

from conversion_ext.errors import UnknownNameError, require

__all__ = ["READERS", "Reader", "reader_of"]


@dataclass(frozen=True)
class Reader:
    """What one package reads.

    Attributes:
        r: The resistance for which a current of 1 raises the potential by 1 in a step.
        leaky: Whether it reads ``nir.LIF`` (its leak, 1e-9 a step, is none in float32).
        strict: Whether a neuron fires above its threshold only, so that the threshold is written one ulp lower.
        averages: Whether it reads ``AvgPool2d``; otherwise sums are written and the next weights divided.
        groups: Whether it reads grouped convolutions; otherwise dense ones with zeros are written.
        scales: Whether it reads ``nir.Scale``; otherwise a convolution or a matrix with a diagonal is written.
        flattens_batch: Whether its flatten counts dimensions with the batch, so that it starts at 1.
        depth_first: Whether it runs nodes in the order of a walk into the depth, which few sums of branches survive.
        metadata: Whether it takes reset and initial potential from the metadata.
    """

    r: float = 1.0
    leaky: bool = False
    strict: bool = False
    averages: bool = True
    groups: bool = True
    scales: bool = False
    flattens_batch: bool = False
    depth_first: bool = False
    metadata: bool = False


OWN = Reader(scales=True, metadata=True)
READERS = {
    "spikingjelly": Reader(r=1e4, groups=False),
    "snntorch": Reader(r=1e9, leaky=True, strict=True, flattens_batch=True),
    "sinabs": Reader(averages=False, depth_first=True),
    "norse": Reader(averages=False, strict=True, flattens_batch=True, depth_first=True),
    "spinnaker2": Reader(averages=False, strict=True),
}
"""Measured with SpikingJelly 2.0.0 (``dt=1e-4``), snnTorch 1.0.0, sinabs 3.1.3 and norse 1.1.0; SpiNNaker 2 by the
rules that its ``s2_nir`` publishes."""


def reader_of(name: str | None) -> Reader:
    """Return the reader called ``name``, for None our own ``from_nir``."""
    if name is None:
        return OWN
    require(name in READERS, f"reader={name!r}: there are {', '.join(READERS)}, and None for ours.", UnknownNameError)
    return READERS[name]
