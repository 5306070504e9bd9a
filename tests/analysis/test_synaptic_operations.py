"""Operation counts against counts by hand and by brute force; energy models against their published figures."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import conversion_ext as cx
from conversion_ext.analysis.energy import Cao, DataMovement, Hu, Hunsberger
from conversion_ext.analysis.operations import FortyFiveNanometres, LayerCount, OperationCount
from conversion_ext.encoders import Poisson
from conversion_ext.types import Family
from tests import zoo
from tests.live import live_inputs, make_live


def strided() -> nn.Sequential:
    """A copy of the image, then 3x3 with stride 2 and padding 1 on 4x4: a pixel reaches 1, 2 or 4 positions."""
    ann = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5)
    )
    ann[0].weight.data.fill_(1.0)
    return ann


IMAGE = torch.tensor([[1.0, 0, 0, 0], [0, 0.5, 0, 0.25], [0, 0, 0.75, 0], [0, 0, 0, 0]]).view(1, 1, 4, 4)


def converted(ann: nn.Module, x, recipe: cx.Recipe | None = None, **options):
    recipe = recipe or cx.Recipe(cx.Maximum())
    return cx.convert(ann, x, recipe=recipe, progress=False, **{"backend": "reference", **options})


def test_two_layers_by_hand():
    """Spikes in 4 steps are 4 x. Outputs 0 and 1 of a line see pixels 0, 1 and 1, 2, 3: pixel 1 is seen twice."""
    ann = strided()
    count = cx.synops(converted(ann, IMAGE), IMAGE, 4, ann=ann)
    first, second, third = count.layers
    # (0, 0): 4 spikes, 1 position; (1, 1): 2 spikes, 2 x 2; (1, 3): 1 spike, 2 x 1; (2, 2): 3 spikes, 1; 3 channels
    assert second.synops == second.events == 3 * (4 * 1 + 2 * 4 + 1 * 2 + 3 * 1)
    # the four pixels of the image that are not 0 are multiplied once, not in every step
    assert (first.analog_macs, first.synops, second.analog_macs) == (4, 0, 0)
    # 25 of the 36 places of the 4 windows are inside the image
    assert [layer.macs for layer in count.layers] == [16, 3 * 25, 12 * 5]
    assert count.macs == 16 + 75 + 60
    assert count.spikes["1"] == 10
    assert count.neurons == {"1": 16, "3": 12}
    assert count.updates == 4 * 28
    assert third.synops == 5 * count.spikes["3"]
    assert (third.weights, third.outputs, count.bits) == (60, 5, 3)
    assert all(flag.training for flag in ann.modules())


@pytest.mark.parametrize("transposed", [False, True])
def test_any_geometry_by_brute_force(transposed):
    """Move one spike through the layer, with weights of 1, and count the outputs that change."""
    torch.manual_seed(1)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    ann = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), kind(4, 6, 3, 2, 1, groups=2), nn.ReLU())
    ann.append(nn.Conv2d(6, 2, 1)).double()
    ann[2].get_parameter("weight").data[0, 0, 1, 1] = 0.0  # a pruned weight
    x = torch.rand(2, 2, 5, 7).double()
    snn = converted(ann, x)
    spikes = cx.simulate(snn, x, 6, record=("spikes",)).recorded["spikes"]["1"].sum(0)  # [N, C, H, W]
    layer, total = ann[2], 0.0
    plain = kind(4, 6, 3, 2, 1, groups=2, bias=False).double()
    plain.weight.data = layer.get_parameter("weight").data.ne(0).double()
    for c, i, j in itertools.product(range(4), range(5), range(7)):
        one = torch.zeros(1, 4, 5, 7).double()
        one[0, c, i, j] = 1
        total += plain(one).sum().item() * float(spikes[:, c, i, j].sum()) / 2
    assert cx.synops(snn, x, 6).layers[1].synops == pytest.approx(total)
    assert total > 0


def test_random_input_makes_the_first_layer_count_spikes():
    recipe = cx.Recipe(cx.Maximum(), encoder=Poisson())
    ones = torch.ones(1, 1, 4, 4)
    first = cx.synops(converted(strided(), IMAGE, recipe), ones, 5).layers[0]
    assert (first.synops, first.analog_macs, first.sees) == (5 * 16, 0, Family.BINARY)
    scaled = cx.Recipe(cx.Maximum(), encoder=Poisson(gain=0.5))
    first = cx.synops(converted(strided(), IMAGE, scaled), 2 * ones, 5).layers[0]
    assert (first.synops, first.analog_macs) == (0, 5 * 16)  # not once: it changes


def test_bursts_count_every_spike_and_signed_spikes_by_magnitude():
    burst = cx.Recipe(cx.Maximum(), cx.neurons.BurstIF(4), family=Family.MULTI_LEVEL)
    second = cx.synops(converted(strided(), IMAGE, burst), IMAGE, 1).layers[1]
    assert second.synops == 3 * (4 * 1 + 2 * 4 + 1 * 2 + 3 * 1)  # one step of up to four spikes says the same
    assert second.events == 3 * (1 + 4 + 2 + 1)
    leaky = nn.Sequential(nn.Linear(2, 2, bias=False), nn.LeakyReLU(0.5), nn.Linear(2, 3))
    leaky[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    x = torch.tensor([[1.0, 1.0]])
    count = cx.synops(converted(leaky, x), x, 40)
    spikes = cx.simulate(converted(leaky, x), x, 40, record=("spikes",)).recorded["spikes"]["1"]
    assert (spikes < 0).any()
    assert next(layer for layer in count.layers if layer.key == "2").synops == 3 * float(spikes.abs().sum())


def test_what_is_no_spike_is_a_mac_at_every_step():
    ann = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(2, 3, 1, bias=False), nn.ReLU())
    ann.append(nn.Conv2d(3, 1, 1))
    ann[0].weight.data.fill_(1.0)
    x = torch.ones(1, 1, 4, 4)
    snn = converted(ann, x)
    second = cx.synops(snn, x, 6).layers[1]
    means = nn.functional.avg_pool2d(cx.simulate(snn, x, 6, record=("spikes",)).recorded["spikes"]["1"][:, 0], 2)
    assert (second.sees, second.synops) == (Family.ANALOG, 0)
    assert second.analog_macs == 3 * float((means != 0).sum())
    relayed = cx.synops(converted(ann, x, relay=True), x, 6).layers[1]
    assert relayed.synops > 0 == relayed.analog_macs


def test_pruned_weights_cost_nothing_on_either_side():
    ann = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    prune.random_unstructured(ann[2], "weight", amount=0.75)
    x = torch.rand(3, 8)
    count = cx.synops(converted(ann, x), x, 8, ann=ann)
    assert count.layers[1].weights == 16
    assert count.macs == 8 * 16 + 16


@pytest.mark.parametrize("name", ["residual", "inception", "gated", "shuffle", "tied"])
def test_every_network_is_counted_and_shortcut_scales_are_multiplications(name):
    build, shape = zoo.SMALL[name]
    ann = make_live(build(), *shape)
    x = live_inputs(ann, *shape)
    count = cx.synops(converted(ann, x, cx.Recipe(cx.Percentile(99.0))), x, 8, ann=ann)
    assert count.macs > 0
    assert count.synops > 0
    scales = [layer for layer in count.layers if "->" in layer.key]
    assert all(layer.synops == 0 < layer.analog_macs for layer in scales)
    assert len(str(count).splitlines()) == len(count.layers) + 7
    assert "estimate" in str(count)


def test_unfolded_networks_are_refused():
    with pytest.raises(ValueError, match="fold=True"):
        cx.synops(converted(strided(), IMAGE, fold=False), IMAGE, 4)


def hunsberger(n: list[int], S: list[int], f: list[float], c1: float) -> OperationCount:
    """The counts of a network with n neurons and S synapses per layer that fires at f Hz for c1 seconds."""
    synapses = [0.0] + [c1 * s * rate for s, rate in zip(S[1:], f, strict=True)]
    layers = [
        LayerCount(str(i), Family.BINARY, s, ops, ops, s if i == 0 else 0.0, 0, 0)
        for i, (s, ops) in enumerate(zip(S, synapses, strict=True))
    ]
    neurons = {str(i): k for i, k in enumerate(n)}
    return OperationCount(tuple(layers), neurons, dict.fromkeys(neurons, 0.0), round(c1 * 1000), 8, sum(S))


PUBLISHED = {
    "MNIST": (
        [12544, 12544, 2000], [313600, 5017600, 6272000, 20000], [4.6, 15.6, 4.2],
        {200: 5.94, 100: 10.24, 60: 14.42},
    ),
    "CIFAR-10": (
        [36864, 9216, 2304, 1152], [2764800, 14745600, 1327104, 663552, 11520], [173.3, 99.0, 9.7, 7.2],
        {200: 0.76, 150: 0.98, 80: 1.64, 60: 2.04},
    ),
    "ILSVRC": (
        [193600, 139968, 64896, 43264, 43264, 4096, 4096],
        [70276800, 223948800, 112140288, 149520384, 99680256, 37748736, 16777216, 4096000],
        [178.1, 48.8, 26.6, 30.6, 35.6, 19.1, 10.7], {200: 1.39, 80: 2.88, 60: 3.51},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_hunsbergers_model_gives_his_printed_factors(name):
    n, S, f, factors = PUBLISHED[name]
    for milliseconds, factor in factors.items():
        ratio = hunsberger(n, S, f, milliseconds / 1000).energy(Hunsberger()).ratio
        assert ratio is not None
        assert round(ratio, 2) == factor


def test_energy_of_arithmetic_by_hand():
    count = cx.synops(converted(strided(), IMAGE), IMAGE, 4)
    energy = count.energy()
    assert energy.snn == pytest.approx(0.9 * count.synops + 4.6 * 4)
    assert energy.ann == pytest.approx(4.6 * 151)
    assert energy.twin == pytest.approx(4.6 * 16 + 3 * 0.9 * (75 + 60))  # three bits: at most three additions
    assert count.energy(Cao(spike_pj=2.0)).snn == 2 * sum(count.spikes.values())
    hu = count.energy(Hu(synop_pj=0.5, flop_pj=3.0))
    assert (hu.snn, hu.ann) == (0.5 * (count.synops + 4), 3.0 * 2 * 151)
    assert FortyFiveNanometres().energy(count) == energy
    assert "Horowitz" in str(energy)


def test_data_movement_reads_and_writes_what_it_says():
    assert [DataMovement.access(k * 256) for k in (0, 8, 20, 32, 1024, 9999)] == [0, 10, 15, 20, 100, 100]
    layer = LayerCount("fc", Family.BINARY, 100.0, 30.0, 30.0, 0.0, 2048, 8192)  # 8 kB of weights, 32 kB of potentials
    count = OperationCount((layer,), {"a": 2048}, {"a": 7.0}, 3, 2, 100.0)
    energy = count.energy(DataMovement())
    assert energy.snn == pytest.approx(30 * (0.1 + 10 + 2 * 20) + 2048 * 3 * (2 * 10 + 0.1) + 7 * 10)
    assert energy.ann == pytest.approx(100 * (3.2 + 2 * 10) + 8192 * 20)


@pytest.mark.parametrize("bad", [lambda: Cao(spike_pj=0), lambda: Hu(synop_pj=1.0, flop_pj=-1.0)])
def test_constants_are_positive(bad):
    with pytest.raises(ValueError, match="positive"):
        bad()


def test_bits_of_the_twin():
    for T, bits in ((1, 1), (3, 2), (4, 3), (255, 8)):
        assert cx.synops(converted(strided(), IMAGE), IMAGE, T).bits == bits == math.ceil(math.log2(T + 1))
