"""Files that a release wrote, each with inputs and the outputs it gave: later releases must load them for ever.

``python -m tests.exchange.releases FOLDER`` writes those of the present release. Files of a past one are never written
again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.integer import integers
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.neurons import PLIF
from tests.papers import bias_free, images, network_for
from tests.zoo import SMALL

__all__ = ["networks", "write"]

T = 8


def networks() -> dict[str, tuple[SpikingNetwork, Tensor]]:
    """Return {name: (network, inputs)}: every kind of neuron, module and option that a file can hold."""
    torch.manual_seed(0)
    x = images()

    def made(ann: nn.Module, inputs: Tensor = x, **options) -> tuple[SpikingNetwork, Tensor]:
        return cx.convert(ann.eval(), inputs, **{"T": T, "backend": "reference", "progress": False, **options}), inputs

    def of_zoo(name: str, **options) -> tuple[SpikingNetwork, Tensor]:
        build, shape = SMALL[name]
        return made(build(), torch.rand(4, *shape), **options)

    found = {
        "default": made(bias_free(), backend="snntorch"),
        "unfolded": made(bias_free(), fold=False),
        "signed": made(bias_free(), recipe="default-signed", backend="spikingjelly"),
        "multilevel": made(bias_free(), recipe="default-multilevel"),
        "offset_spike": made(network_for("hao2023_cos"), recipe="hao2023_cos"),
        "residual_potential": made(network_for("hao2023"), recipe="hao2023", backend="spikingjelly"),
        "poisson": made(bias_free(), recipe="cao2015"),
        "shortcuts": of_zoo("residual", backend="spikingjelly"),
        "graded": of_zoo("gated"),
        "learned": made(bias_free(), recipe=cx.Recipe(neuron=PLIF()), T=None, backend="snntorch"),
    }
    for site in found["learned"][0].sites().values():
        site.neuron.beta.data.fill_(0.875)  # type: ignore[union-attr]
    found["integers"] = integers(found["default"][0], x), x
    return found


def write(folder: Path) -> None:
    """Write every network, and beside it its inputs and outputs."""
    for name, (snn, x) in networks().items():
        cx.save(snn, folder / f"{name}.safetensors")
        expected = {"x": x, "outputs": cx.simulate(snn, x, T=T).outputs.contiguous()}
        safetensors.torch.save_file(expected, folder / f"{name}.expected.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(Path(sys.argv[1]))
