"""Weight layers in fewer bits: what is rounded, and what is not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.backends import available
from tests import zoo
from tests.live import live_inputs, make_live


def network(name="residual", backend="reference"):
    build, shape = zoo.SMALL[name]
    torch.manual_seed(0)
    ann = make_live(build(), *shape)
    x = live_inputs(ann, *shape, samples=6, seed=5).float()
    return cx.convert(ann.float(), x, backend=backend, progress=False), x[:3]


@pytest.mark.parametrize("name", ["residual", "shuffle", "gated"])
@pytest.mark.parametrize("backend", available())
def test_bfloat16_spikes_are_exact_and_states_float32(name, backend):
    snn, x = network(name, backend)
    before = copy.deepcopy(snn.state_dict())
    exact = cx.simulate(snn, x, 300, at=[300], record=("spikes",))
    result = cx.simulate(snn, x, 300, at=[300], dtype="bfloat16", record=("spikes",))
    for key, spikes in result.recorded["spikes"].items():
        assert set(spikes.unique().tolist()) <= {-1.0, 0.0, 1.0}
        counted = spikes.double().abs().sum(0)  # a count in bfloat16 would stop at 256
        torch.testing.assert_close(result.firing_rate[key].double() * 300, counted, rtol=0, atol=1e-4)
        potential = snn.sites()[key].potential
        assert potential is not None
        assert potential.dtype == torch.float32
    assert result.output.dtype == torch.float32
    assert not torch.equal(result.output, exact.output)  # it does compute in another precision
    torch.testing.assert_close(result.output, exact.output, rtol=0.05, atol=0.05 * float(exact.output.abs().max()))
    after = snn.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if isinstance(before[k], torch.Tensor))


def test_int8_weights_are_integers_times_a_scale_per_output_channel():
    """Against a network whose weights were rounded by hand: the first layer and the readout keep theirs."""
    ann = nn.Sequential(
        nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)
    )
    x = torch.rand(5, 6)
    snn = cx.convert(ann, x, backend="reference", progress=False)
    by_hand = copy.deepcopy(snn)
    layers = [m for m in by_hand.body.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == 4
    for layer in layers[1:3]:
        for row in layer.weight.data:
            step = float(row.abs().max()) / 127
            row.copy_(torch.tensor([round(w / step) * step for w in row.tolist()]))
            assert len({round(w / step) for w in row.tolist()}) > 3
    found = cx.simulate(snn, x, 50, weights="int8").outputs
    torch.testing.assert_close(found, cx.simulate(by_hand, x, 50).outputs, rtol=1e-5, atol=1e-5)
    assert not torch.equal(found, cx.simulate(snn, x, 50).outputs)


@pytest.mark.parametrize("options", [{"dtype": "int4"}, {"dtype": torch.int8}, {"weights": "int4"}])
def test_an_unknown_precision_is_refused(options):
    snn, x = network()
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.*None"):
        cx.simulate(snn, x, 4, **options)


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"weights": "int8"}], ids=str)
def test_evaluation_takes_the_precision_of_simulation(options):
    snn, x = network()
    found = cx.evaluate(snn, (x, torch.zeros(len(x), dtype=torch.long)), 32, progress=False, **options).firing_rate
    narrow, exact = cx.simulate(snn, x, 32, **options).firing_rate, cx.simulate(snn, x, 32).firing_rate
    assert found == pytest.approx({key: float(rate.double().mean()) for key, rate in narrow.items()}, rel=1e-6)
    assert found != pytest.approx({key: float(rate.double().mean()) for key, rate in exact.items()}, rel=1e-6)
