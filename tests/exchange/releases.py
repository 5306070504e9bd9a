"""Files that a release wrote, each with inputs and the outputs it gave: later releases must load them for ever.

``python -m tests.exchange.releases FOLDER`` writes those of the present release that are not there yet. A file is never
written again: where a later release cannot load one, ``conversion_ext.exchange.names`` lacks a line.
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
from conversion_ext.neurons import LIF, PLIF, Filtered, RefractoryLIF
from conversion_ext.tuners import VoltageClamp
from tests.papers import bias_free, images, network_for
from tests.zoo import SMALL

__all__ = ["networks", "write"]

T = 8


class Attention(nn.Module):
    """A block of self-attention, whose products of two streams have a form of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.up, self.down, self.head = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x)[0]
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        return self.head(x.mean(1))


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
    leaky = LIF(tau=8.0, decay_input=False)
    found |= {
        "lookahead": of_zoo("inception", recipe="default-lookahead"),
        "delays": of_zoo("dense", recipe="default-lookahead"),
        "signal": of_zoo("signal"),
        "weighted": of_zoo("residual", recipe="default-weighted"),
        "copies": made(bias_free(), recipe="default-copies"),
        "attention": made(Attention(), torch.rand(4, 6, 8), recipe="default-attention"),
        "clamped": made(bias_free(), recipe=cx.Recipe(tuners=(VoltageClamp(),))),
        "magnitude": made(network_for("cao2015_adapted"), recipe="cao2015_adapted"),
        "filtered": made(bias_free(), recipe=cx.Recipe(neuron=Filtered(leaky, tau=2.0)), T=None),
        "refractory": made(bias_free(), recipe=cx.Recipe(neuron=RefractoryLIF()), T=None),
        "floor": made(bias_free(), recipe=cx.Recipe(neuron=cx.IF(0.25, cx.Reset.ZERO, floor=-1.0, strict=True))),
        "relays": of_zoo("bottleneck", relay=True),
    }
    for site in found["learned"][0].sites().values():
        site.neuron.beta.data.fill_(0.875)  # type: ignore[union-attr]
    found["integers"] = integers(found["default"][0], x), x
    found["integers_even"] = integers(found["default"][0], x, even_weights=True, overflow="saturate"), x
    return found


def write(folder: Path) -> None:
    """Write every network, and beside it its inputs and outputs."""
    for name, (snn, x) in networks().items():
        if (folder / f"{name}.safetensors").exists():
            continue
        cx.save(snn, folder / f"{name}.safetensors")
        expected = {"x": x, "outputs": cx.simulate(snn, x, T=T).outputs.contiguous()}
        safetensors.torch.save_file(expected, folder / f"{name}.expected.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(Path(sys.argv[1]))
