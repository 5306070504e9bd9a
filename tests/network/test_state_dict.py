"""State dicts fit conversions of the same kind, and others are refused in a sentence before anything changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from tests.live import perceptron

pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data")
X = torch.rand(30, 6, generator=torch.Generator().manual_seed(0))
T = 4


def converted(seed: int = 0, x: Tensor = X, backend: str = "reference", **options: Any) -> Any:
    return cx.convert(perceptron(6, 12, 9, 3, seed=seed), x, backend=backend, progress=False, **options)


@pytest.mark.parametrize("options", [{}, {"fold": False}, {"T": T}, {"recipe": "default-signed"}], ids=str)
def test_it_fits_a_conversion_of_other_weights_and_other_data(options):
    one, two = converted(**options), converted(1, 3 * X[:7] - 1, **options)
    two.load_state_dict(one.state_dict())
    assert torch.equal(cx.simulate(two, X, T).outputs, cx.simulate(one, X, T).outputs)


def test_thresholds_of_sites_and_of_channels_fit_each_other():
    recipes = [cx.Recipe(cx.Percentile(99.0, granularity=g)) for g in (cx.PerLayer(), cx.PerChannel())]
    for first, second in (recipes, recipes[::-1]):
        one, two = (converted(recipe=recipe, fold=False) for recipe in (first, second))
        two.load_state_dict(one.state_dict())
        assert torch.equal(cx.simulate(two, X, T).outputs, cx.simulate(one, X, T).outputs)


OTHERS = {
    "fold=True, and this one has fold=False": {"fold": False},
    r"neurons=IF\(v_init=0.5.*this one has neurons=IF\(v_init=0.0": {"recipe": cx.Recipe(neuron=cx.IF(v_init=0.0))},
    "neurons=IF.*this one has neurons=SignedIF": {"recipe": "default-signed"},
    r"this one has neurons=IF\(v_init=0.5, reset=<Reset.ZERO": {"recipe": cx.Recipe(neuron=cx.IF(reset=cx.Reset.ZERO))},
}


@pytest.mark.parametrize("message", OTHERS)
def test_that_of_another_conversion_is_refused_before_anything_changes(message):
    one, two = converted(), converted(1, **OTHERS[message])
    before = cx.simulate(two, X, T).outputs
    with pytest.raises(ValueError, match=message):
        two.load_state_dict(one.state_dict())
    assert torch.equal(cx.simulate(two, X, T).outputs, before)


def test_that_of_another_network_is_refused_in_a_sentence():
    torch.manual_seed(0)
    other = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
    one, two = cx.convert(other, X, backend="reference", progress=False), converted()
    with pytest.raises(ValueError, match=r"does not fit this conversion: body.2.weight, body.2.bias, .* differ"):
        two.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="does not fit this conversion"):
        two.load_state_dict({})
    smaller = cx.convert(other[:3], X, backend="reference", progress=False)
    with pytest.raises(ValueError, match="a network with other sites"):
        two.load_state_dict(smaller.state_dict())


@pytest.mark.parametrize("T", [None, 3])
def test_a_network_converted_in_inference_mode_can_be_trained_and_loaded(T):
    with torch.inference_mode():
        snn = converted(x=torch.rand(30, 6), T=T)
        assert torch.is_inference_mode_enabled()
    assert not any(value.is_inference() for value in (*snn.parameters(), *snn.buffers()))
    snn.load_state_dict(converted(2, T=T).state_dict())
    snn(X).sum().backward()
    assert all(p.grad is not None for p in snn.parameters())


def test_constants_have_memory_of_their_own():
    """An expanded constant cannot be written to, and one that the network shares with the user's must not be."""
    offset = torch.rand(1, 6)

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.unflatten(1, (1, 6)).expand(-1, 2, -1) + offset.expand(2, 6)
            return self.last(torch.relu(self.first(x)).sum(1))

    one, two = (cx.convert(Shifted().eval(), X, backend="reference", progress=False) for _ in range(2))
    kept = offset.clone()
    two.load_state_dict(one.state_dict())
    with torch.no_grad():
        for value in two.buffers():
            value.zero_()
    assert torch.equal(offset, kept)


class Branches(nn.Module):
    """Clips of 2 behind a ReLU: a scale stays on each branch where the two thresholds differ."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x)
        return self.last(torch.cat([y.clamp(0, 2).clamp(0, 1), y.clamp(0, 1.5) + y], 1))


@pytest.mark.parametrize("factors", [(0.5, 3.0), (3.0, 0.5), (1.2, 9.0), (0.5, 1.9)], ids=str)
@pytest.mark.parametrize("granularity", [cx.PerLayer(), cx.PerChannel()], ids=["layer", "channel"])
def test_scales_go_where_the_loaded_network_has_them(factors, granularity):
    """What other data leave on other edges moves there; with it the copy that goes on is a network like any."""
    recipe = cx.Recipe(cx.Maximum(granularity=granularity))
    data = [factor * X / X.max() for factor in factors]
    one, two = (cx.convert(Branches().eval(), x, recipe=recipe, backend="reference", progress=False) for x in data)
    assert set(one.state_dict()) != set(two.state_dict()) or factors == (1.2, 9.0)
    two.load_state_dict(one.state_dict())
    for snn in (two, copy.deepcopy(two)):
        assert torch.equal(cx.simulate(snn, X, T).outputs, cx.simulate(one, X, T).outputs)
    assert str(two.conversion.table()) == str(one.conversion.table())


def test_scales_of_nodes_that_are_not_there_are_refused():
    one, two = converted(), converted(1)
    state = one.state_dict()
    state["_extra_state"] = state["_extra_state"] | {"scales": {"x_scale": ["x", "nowhere"]}}
    state["body.x_scale.scale"] = torch.ones(1)
    with pytest.raises(ValueError, match="does not fit this conversion: body.x_scale.scale differs"):
        two.load_state_dict(state)
