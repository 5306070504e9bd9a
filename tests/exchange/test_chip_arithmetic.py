"""What chips compute, by the tools of their makers or by published arithmetic, is what is simulated here."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.exchange import to_nir
from conversion_ext.integer import IntegerLayer, integers, parameters
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


class Loihi:
    """A chain of dense layers and IF neurons by lava's published arithmetic, from nothing but ``parameters``.

    Weights are even integers times 2^e, what they add up to is shifted by 6 bits more and arrives one step late;
    potentials have 24 bits and stop at either end, currents do not last (du = 4095), potentials do not leak (dv = 0). A
    neuron fires above vth 2^6 and starts anew from 0.
    """

    def __init__(self, snn: Any, keys: list[tuple[str, str]]) -> None:
        known = parameters(snn)
        self.layers = [(known[layer], known[site]) for layer, site in keys]

    def run(self, spikes: np.ndarray) -> list[np.ndarray]:
        """Return the spikes [T, N, ...] of every site for input spikes [T, N, ...]."""
        found = []
        for layer, site in self.layers:
            spikes = self.fire(layer, site, spikes)
            found.append(spikes)
        return found

    def fire(self, layer: Any, site: Any, spikes: np.ndarray) -> np.ndarray:
        weight, bits = layer.weight.numpy(), site.threshold.bit_length() - 1
        (exponent,) = set((bits - layer.weight_exponent - 6).tolist())  # one for the layer
        vth = site.threshold >> 6
        assert np.all(weight % 2 == 0)
        assert np.abs(weight).max() <= 254
        assert 0 <= exponent <= 7
        assert 0 < vth < 2**17
        assert site.bits == 24
        bias = 0
        if layer.bias is not None:
            bias = layer.bias.numpy() * 2.0 ** (bits - layer.bias_exponent.numpy())
            assert np.all(bias == np.rint(bias))
            bias = bias.astype(np.int64)
        v, arriving, sent = np.zeros((spikes.shape[1], len(weight)), np.int64), 0, []
        for s in spikes.astype(np.int64):
            u = np.left_shift(np.asarray(arriving), exponent + 6)
            arriving = s @ weight.T
            v = np.clip(v + u + bias, 1 - 2**23, 2**23 - 1)
            fired = v > vth << 6
            v = np.where(fired, 0, v)
            sent.append(fired)
        return np.array(sent)


@pytest.mark.parametrize("bias", [False, True])
def test_integers_with_a_delay_are_what_loihi_computes(bias: bool) -> None:
    """Spike for spike at every site, where an undelayed run differs."""
    torch.manual_seed(0)
    layers = [nn.Linear(a, b, bias=bias) for a, b in ((16, 32), (32, 24), (24, 5))]
    ann = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval()
    x = torch.rand(32, 16, generator=torch.Generator().manual_seed(1))
    recipe = cx.Recipe(
        cx.Percentile(granularity=cx.PerLayer()), cx.IF(0.0, cx.Reset.ZERO, strict=True),
        readout=cx.readouts.SpikeCount(), encoder=cx.encoders.Poisson(),
    )  # fmt: skip
    snn = cx.convert(ann, x, recipe=recipe, progress=False)
    even = integers(snn, x, even_weights=True, overflow="saturate")
    weights = [k for k, v in parameters(even).items() if isinstance(v, IntegerLayer) and v.weight.dim() == 2]
    keys = list(zip(weights[:3], snn.sites(), strict=True))
    frames = (torch.rand(T, 32, 16, generator=torch.Generator().manual_seed(2)) < x).float()
    loihi = Loihi(even, keys).run(frames.numpy())
    ours, at_once = (
        cx.simulate(even, x_seq=frames, record=("spikes",), delay_per_layer=d).recorded["spikes"] for d in (1, 0)
    )
    for (_, site), spikes in zip(keys, loihi, strict=True):
        assert np.array_equal(ours[site].numpy() > 0, spikes)
        assert 0.01 < spikes.mean() < 0.9
    last = keys[-1][1]
    assert not torch.equal(at_once[last], ours[last])


def test_wrong_widths() -> None:
    snn = cx.convert(network(), images(), progress=False)
    with pytest.raises(ValueError, match=r"threshold_bits=24: a threshold in 24 bits is 2 to a number from 1 to 22"):
        integers(snn, images(), threshold_bits=24)
    with pytest.raises(ValueError, match=r"threshold_bits=4: .* from 7 to 22"):
        integers(snn, images(), threshold_bits=4, even_weights=True)
    with pytest.raises(ValueError, match=r"even_weights=1"):
        integers(snn, images(), even_weights=1)  # pyright: ignore[reportArgumentType]
    site = next(iter(snn.sites()))
    found: list[Any] = [parameters(integers(snn, images(), threshold_bits=bits))[site] for bits in (None, 16)]
    assert [each.threshold for each in found] == [2**12, 2**16]
