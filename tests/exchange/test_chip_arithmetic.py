"""What chips compute, by the tools of their makers or by published arithmetic, is what is simulated here."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.exchange import to_nir
from conversion_ext.neurons import BurstIF, Neuron, advance
from tests.exchange.readers import INSTALLED, spikes_of

T = 40
sinabs = pytest.mark.skipif("sinabs" not in INSTALLED, reason="sinabs is not installed")


def iaf(floor: float | None, hard: bool, single: bool) -> Any:
    """Return sinabs' integrate-and-fire layer for inputs [N, T, ...]."""
    activation, layers = (importlib.import_module(f"sinabs.{name}") for name in ("activation", "layers"))
    return layers.IAF(
        spike_threshold=1.0,
        spike_fn=activation.SingleSpike if single else activation.MultiSpike,
        reset_fn=activation.MembraneReset() if hard else activation.MembraneSubtract(),
        min_v_mem=floor,
    )


@sinabs
@pytest.mark.parametrize(
    ("neuron", "floor", "hard", "single"),
    [
        (cx.IF(0.0), None, False, True),
        (cx.IF(0.0, floor=-1.0), -1.0, False, True),
        (cx.IF(0.0, floor=-0.25), -0.25, False, True),
        (cx.IF(0.0, cx.Reset.ZERO, floor=-1.0), -1.0, True, True),
        (BurstIF(1000, v_init=0.0), None, False, False),
    ],
    ids=repr,
)
def test_neurons_are_those_of_sinabs(neuron: Neuron, floor: float | None, hard: bool, single: bool) -> None:
    """On a grid of 1/16, where nothing rounds: spikes with ties, and potentials at every step."""
    x_seq = torch.randint(-24, 30, (T, 8, 25), generator=torch.Generator().manual_seed(0)) / 16
    layer = iaf(floor, hard, single)
    with torch.no_grad():
        theirs = torch.stack([layer(x[:, None])[:, 0] for x in x_seq])
        ours, (v,) = advance(neuron, x_seq, (torch.zeros(8, 25),), lambda z: (z >= 0).to(z.dtype))
    assert torch.equal(ours, theirs)
    assert torch.equal(v, layer.v_mem)
    assert ours.max() == (1 if single else 2)
    assert floor is None or bool((v == floor).any())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5)
    ).eval()


def images(n: int = 24) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@sinabs
@pytest.mark.filterwarnings("ignore")
def test_a_network_with_a_floor_is_that_of_sinabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """sinabs puts a floor of -1 into what it reads; with one spike a step it is ours, and not without our floor."""
    layers = importlib.import_module("sinabs.layers")
    single = importlib.import_module("sinabs.activation").SingleSpike
    plain = layers.IAFSqueeze.__init__
    monkeypatch.setattr(layers.IAFSqueeze, "__init__", lambda self, **k: plain(self, **{**k, "spike_fn": single}))
    differing = {}
    for floor in (-1.0, None):
        snn = cx.convert(network(), images(64), recipe=cx.Recipe(neuron=cx.IF(0.0, floor=floor)), progress=False)
        ours = cx.simulate(snn, images(), T=T, record=("spikes", "potential")).recorded
        graph = to_nir(snn, reader="sinabs")
        theirs, _ = spikes_of("sinabs", graph, images(), T)
        keys = {name: str(graph.nodes[name].metadata["key"]) for name in theirs}
        wrong = [float((theirs[name] != ours["spikes"][key]).float().mean()) for name, key in keys.items()]
        differing[floor] = max(wrong)
        lowest = min(float(v.min()) for v in ours["potential"].values())
        assert lowest == -1 if floor else lowest < -3
    assert differing[-1.0] < 1e-3 < differing[None]
