"""Initial potentials in closed form: the published formula on neurons whose counts are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.tuners import InitialPotential, PerNeuron
from tests import zoo
from tests.live import live, live_inputs, make_live


def converted(ann: Any, x: Any, *tuners: Any, neuron: Any = cx.IF(), T: int = 4, **options: Any) -> Any:  # noqa: B008
    recipe = cx.Recipe(cx.Maximum(), neuron, tuners=tuners, family=neuron.family)
    return cx.convert(ann, x, recipe=recipe, T=T, progress=False, **{"backend": "reference", **options})


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("backend", available())
def test_charge_is_what_the_count_lacks(backend, fold):
    """z = 0.4, 1 and -1 in units of the threshold: floor(1.6) = 1 of 4 spikes, so 4 (0.4 - 0.25) = 0.6 is lacking."""
    ann, x = nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), torch.tensor([[0.8, 2.0, -2.0]])
    snn = converted(ann, x, InitialPotential(), neuron=cx.IF(v_init=0.0), backend=backend, fold=fold)
    site = snn.sites()["0"]
    torch.testing.assert_close(site.v_init.flatten(), torch.tensor([0.6, 0.0, 0.0]))
    assert (4 * cx.simulate(snn, x, 4).firing_rate["0"]).tolist() == [[2.0, 4.0, 0.0]]  # 0.5 is nearer to 0.4


def test_charge_that_brings_nothing_nearer_is_taken_back():
    """z = 0.3 and -0.3 for one channel: 1 of 4 spikes and 0. The mean lacks 0.05 / 2, and 0.1 more charge adds none."""
    ann, x = nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), torch.tensor([[0.3, 1.0], [-0.3, 1.0]])
    snn = converted(ann, x, InitialPotential(), neuron=cx.IF(v_init=0.0))
    assert snn.sites()["0"].v_init.flatten().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("neuron", [cx.IF(), cx.SignedIF(), cx.neurons.BurstIF(3)], ids=repr)
@pytest.mark.parametrize("granularity", [cx.PerChannel(), PerNeuron()], ids=repr)
@pytest.mark.parametrize("name", ["residual", "inception", "regression"])
def test_mean_outputs_come_closer(name, granularity, neuron):
    """Measured with simulate at the first site, whose input no tuner changes: no mean is further off than it was."""
    ann, x = live(name, samples=24)
    gaps = []
    for tuners in ((), (InitialPotential(granularity=granularity),)):
        snn = converted(ann, list(x.split(10)), *tuners, neuron=neuron)
        key, site = next(iter(snn.sites().items()))
        seen: dict[str, Any] = {}
        site.register_forward_pre_hook(lambda s, args, seen=seen: seen.update(z=s.current(args[0])))
        found = cx.simulate(snn, x, 4, time_chunk=1).firing_rate[key] - seen["z"].relu()
        dims = (0,) if granularity == PerNeuron() else tuple(d for d in range(found.dim()) if d != 1)
        gaps.append(found.mean(dims).abs())
    assert (gaps[1] <= gaps[0] + 1e-12).all()
    assert gaps[1].sum() < 0.8 * gaps[0].sum()


def test_bursts_of_many_spikes_reach_the_next_layer():
    """With 300 spikes in a step nothing is lost, so nothing is to be added; a count that overflowed would show."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    x = torch.randn(50, 6, dtype=torch.float64)
    snn = converted(ann, x, InitialPotential(), neuron=cx.neurons.BurstIF(300), T=2)
    assert (cx.simulate(snn, x, 2).firing_rate["1"] > 128).any()
    assert all((site.v_init - 0.5).abs().max() < 1 for site in snn.sites().values())


def test_per_neuron_fixes_the_size_of_the_input():
    ann = make_live(zoo.Residual(), *zoo.IMAGE)
    x = live_inputs(ann, *zoo.IMAGE)
    snn = converted(ann, x, InitialPotential(granularity=PerNeuron()))
    assert snn.sites()["stem.2"].v_init.shape == (1, 8, *x.shape[2:])
    cx.simulate(snn, x[:3], 2)
    with pytest.raises(ValueError, match="does not fit this network, which was converted for"):
        cx.simulate(snn, torch.rand(3, 3, x.shape[2] + 4, x.shape[3] + 4), 2)
    free = converted(ann, x, InitialPotential())
    cx.simulate(free, torch.rand(3, 3, x.shape[2] + 4, x.shape[3] + 4), 2)


def test_it_refuses_other_granularities():
    for granularity in (cx.PerLayer(), "neuron", cx.PerChannel(2)):
        with pytest.raises(ValueError, match=r"InitialPotential\(granularity=.*use PerChannel\(\) or PerNeuron\(\)"):
            InitialPotential(granularity=granularity)  # pyright: ignore[reportArgumentType]
