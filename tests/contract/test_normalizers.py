"""What every registered normalizer promises, and what each of ours adds."""

from __future__ import annotations

import dataclasses
import importlib
import operator
import pkgutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from conversion_ext import normalizers as package
from conversion_ext.calibration.statistics import ActivationStats
from conversion_ext.errors import CalibrationError, UnsupportedError
from conversion_ext.graph.shapes import propagate
from conversion_ext.normalizers import (
    DataBased,
    Maximum,
    ModelBased,
    Normalizer,
    Percentile,
    ThresholdBalancing,
    Trained,
    normalizers,
)
from conversion_ext.operators.sites import Site, SiteKind
from conversion_ext.types import Granularity, PerChannel, PerLayer

REGISTERED = dict(normalizers.items())
GRANULARITIES = (PerLayer(), PerChannel(1))
SITES = [Site("conv.relu", "1"), Site("linear.relu", "5")]
T = 16


def traced(network: nn.Module, *shape: int) -> GraphModule:
    """Return the graph of a network whose shapes are known, for samples of this shape."""
    model = symbolic_trace(network)
    propagate(model, (torch.rand(1, *shape),))
    return model


def network(gain: float = 1.0) -> GraphModule:
    """A chain without biases, so that ``gain`` on its first weights scales every activation."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(6 * 9, 8, bias=False), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight.mul_(gain)  # type: ignore[operator]
        model[4].weight.add_(0.05)  # type: ignore[operator]
    return traced(model, 2, 6, 6)


Seen = Mapping[str, tuple[Tensor, Tensor]]
"""{site key: (input, output)} of the activations."""


def activations(model: GraphModule, x: Tensor) -> Seen:
    found: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        model.get_submodule(site.target).register_forward_hook(
            lambda _, z, a, key=site.key: found.update({key: (z[0], a)})
        )
        for site in SITES
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def statistics(value: Normalizer, seen: Seen, order: Sequence[int], size: int) -> dict[str, Any]:
    if isinstance(value, Trained):
        pytest.skip("it estimates nothing; tests/nn/test_trained.py says what it does")
    stats: dict[str, Any] = {}
    for site in SITES:
        stats[site.key] = value.statistics(site) or ActivationStats(site.key, value.granularity)
        z, a = seen[site.key]
        for part in torch.tensor(order).split(size):
            stats[site.key].see(z[part], a[part])
    return stats


@pytest.fixture(params=REGISTERED)
def kind(request: pytest.FixtureRequest) -> type[Normalizer]:
    return REGISTERED[request.param]


@pytest.fixture(params=GRANULARITIES, ids=repr)
def granularity(request: pytest.FixtureRequest) -> Granularity:
    return request.param


def test_every_normalizer_of_the_package_is_registered() -> None:
    assert {"maximum", "percentile", "model_based"} <= set(REGISTERED)
    defined = set()
    for module in pkgutil.iter_modules(package.__path__):
        for value in vars(importlib.import_module(f"{package.__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Normalizer) and value is not Normalizer:
                defined.add(value)
    assert len(defined) >= 3
    assert defined <= set(REGISTERED.values())
    for name in package.__all__:
        assert hasattr(package, name)


def test_is_a_frozen_value_that_its_repr_rebuilds(kind: type[Normalizer], granularity: Granularity) -> None:
    names = {"PerLayer": PerLayer, "PerChannel": PerChannel, kind.__name__: kind}
    for value in (kind(), kind(granularity=granularity)):
        assert eval(repr(value), names) == value
        assert hash(value) == hash(eval(repr(value), names))
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.granularity = PerLayer()  # type: ignore[misc]


def test_refuses_a_granularity_that_is_none(kind: type[Normalizer]) -> None:
    with pytest.raises(ValueError, match=r"granularity='channel'"):
        kind(granularity="channel")  # type: ignore[arg-type]


def found(value: Normalizer, model: GraphModule, stats: Mapping[str, Any]) -> dict[str, Tensor]:
    thresholds = value.thresholds(model, SITES, stats if value.needs_calibration else {}, T)
    assert list(thresholds) == [site.key for site in SITES]
    for key, channels in (("conv.relu", 6), ("linear.relu", 8)):
        assert thresholds[key].dtype == torch.float64
        assert thresholds[key].shape == (() if isinstance(value.granularity, PerLayer) else (channels,))
        assert (thresholds[key] > 0).all()
        assert thresholds[key].isfinite().all()
    return thresholds


def test_order_and_batch_size_change_no_bit(kind: type[Normalizer], granularity: Granularity) -> None:
    if kind is ThresholdBalancing:
        pytest.skip("its outcome is that of a descent batch by batch, as it says")
    model, value = network(), kind(granularity=granularity)
    seen = activations(model, torch.rand(40, 2, 6, 6))
    reference = found(value, model, statistics(value, seen, range(40), 40))
    for size in (1, 7, 16):
        order = torch.randperm(40).tolist()
        other = found(value, model, statistics(value, seen, order, size))
        assert all(torch.equal(reference[key], other[key]) for key in reference)


def test_four_times_the_activations_give_four_times_the_thresholds(
    kind: type[Normalizer], granularity: Granularity
) -> None:
    if kind is DataBased:
        pytest.skip("weights of later layers, which it takes into account, are not four times larger")
    value, x = kind(granularity=granularity), torch.rand(40, 2, 6, 6)
    plain, scaled = (
        found(value, model, statistics(value, activations(model, x), range(40), 8))
        for model in (network(), network(4.0))
    )
    for key in plain:
        torch.testing.assert_close(scaled[key], 4 * plain[key], rtol=1e-12, atol=0)


def test_thresholds_never_exceed_the_cap(kind: type[Normalizer], granularity: Granularity) -> None:
    model, value = network(), kind(granularity=granularity)
    stats = statistics(value, activations(model, torch.rand(40, 2, 6, 6)), range(40), 8)
    free = found(value, model, stats)["conv.relu"]
    cap = float(free.mean()) * 0.9
    capped = [dataclasses.replace(SITES[0], cap=cap), SITES[1]]
    assert torch.equal(value.thresholds(model, capped, stats, T)["conv.relu"], free.clamp(max=cap))


def silenced(channels: Sequence[int]) -> GraphModule:
    """The network with channels of its first layer that no input in [0, 1] can wake."""
    model = network()
    with torch.no_grad():
        weight = model.get_submodule("0").weight
        weight[list(channels)] = -weight[list(channels)].abs()  # type: ignore[index]
    return model


def test_a_dead_channel_takes_the_largest_threshold_of_its_site(kind: type[Normalizer]) -> None:
    model, value = silenced([1, 4]), kind(granularity=PerChannel())
    stats = statistics(value, activations(model, torch.rand(40, 2, 6, 6)), range(40), 8)
    with pytest.warns(UserWarning, match=r"conv\.relu \(2 of 6 channels\)"):
        thresholds = found(value, model, stats)["conv.relu"]
    live = [channel for channel in range(6) if channel not in (1, 4)]
    assert (thresholds[[1, 4]] == thresholds[live].max()).all()


def test_a_dead_site_gets_one(kind: type[Normalizer], granularity: Granularity) -> None:
    model, value = silenced(range(6)), kind(granularity=granularity)
    stats = statistics(value, activations(model, torch.rand(40, 2, 6, 6)), range(40), 8)
    with pytest.warns(UserWarning, match=r"conv\.relu.*linear\.relu"):
        thresholds = found(value, model, stats)
    assert all((threshold == 1).all() for threshold in thresholds.values())


def test_live_sites_warn_of_nothing_and_missing_ones_are_named(kind: type[Normalizer]) -> None:
    model, value = network(), kind(granularity=PerLayer())
    stats = statistics(value, activations(model, torch.rand(40, 2, 6, 6)), range(40), 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value.thresholds(model, SITES, stats, T)
    if value.needs_calibration:
        with pytest.raises(CalibrationError, match=r"linear\.relu has no statistics"):
            value.thresholds(model, SITES, {"conv.relu": stats["conv.relu"]}, T)


def test_maximum_is_the_largest_activation(granularity: Granularity) -> None:
    model = network()
    seen = activations(model, torch.rand(40, 2, 6, 6))
    value = Maximum(granularity=granularity)
    thresholds = found(value, model, statistics(value, seen, range(40), 8))
    for key, (_, values) in seen.items():
        dims = tuple(d for d in range(values.dim()) if d != 1)
        expected = values.max() if isinstance(granularity, PerLayer) else values.amax(dims)
        assert torch.equal(thresholds[key], expected.double())


def test_percentile_is_that_of_numpy_grows_with_p_and_stays_below_the_maximum(granularity: Granularity) -> None:
    model = network()
    seen = activations(model, torch.rand(40, 2, 6, 6))
    stats = statistics(Maximum(granularity=granularity), seen, range(40), 8)
    largest = found(Maximum(granularity=granularity), model, stats)
    for positive_only in (False, True):
        last = {key: torch.zeros_like(value) for key, value in largest.items()}
        for p in (95, 97.5, 99, 99.9, 99.99, 100):
            thresholds = found(Percentile(p, granularity=granularity, positive_only=positive_only), model, stats)
            for key, (_, values) in seen.items():
                assert (last[key] <= thresholds[key]).all()
                assert (thresholds[key] <= largest[key]).all()
                rows = values.movedim(1, 0).flatten(1).double().numpy()
                rows = rows.reshape(1, -1) if isinstance(granularity, PerLayer) else rows
                exact = [np.percentile(row[row > 0] if positive_only else row, p) for row in rows]
                for one, value in zip(thresholds[key].reshape(-1).tolist(), exact, strict=True):
                    assert value == 0 or one == pytest.approx(value, rel=1e-3)
            last = thresholds
        assert all(torch.equal(last[key], largest[key]) for key in last)


def test_a_seldom_active_channel_takes_its_maximum() -> None:
    x = torch.rand(5000, 2)
    x[:, 1] = 0
    x[7, 1] = 0.25
    stats = ActivationStats("a", PerChannel())
    stats.update(x)
    thresholds = Percentile(99.9).thresholds(network(), [Site("a", "1")], {"a": stats}, T)["a"]
    assert thresholds[1] == 0.25
    assert thresholds[0] == pytest.approx(0.999, rel=2e-3)


def test_thresholds_too_small_to_divide_by_count_as_dead() -> None:
    stats = ActivationStats("a", PerLayer())
    stats.update(torch.full((4, 2), 1e-40))
    with pytest.warns(UserWarning, match="Not active on the calibration data: a"):
        assert Maximum().thresholds(network(), [Site("a", "1")], {"a": stats}, T)["a"] == 1


@pytest.mark.parametrize("p", [0, -1, 100.5, float("nan"), "99.9%", None, True])
def test_percentile_refuses_what_is_no_percentage(p: object) -> None:
    with pytest.raises(
        ValueError, match=r"^Percentile\(p=.*\): p must be a number in \(0, 100\]; 100 is the maximum\.$"
    ):
        Percentile(p)  # type: ignore[arg-type]


def test_percentile_has_the_documented_defaults() -> None:
    assert Percentile() == Percentile(99.9, granularity=PerChannel(1), positive_only=False)
    assert Maximum() == Maximum(granularity=PerLayer())
    assert ModelBased() == ModelBased(granularity=PerLayer())
    assert not ModelBased().needs_calibration


# --- ModelBased -----------------------------------------------------------------------------------------------------


def relus(model: GraphModule) -> list[Site]:
    return [
        Site(str(node.target), str(node.target))
        for node in model.graph.nodes
        if node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.ReLU)
    ]


def bounds(model: GraphModule, granularity: Granularity = PerLayer(), **options: object) -> list[Tensor]:  # noqa: B008
    value = ModelBased(granularity=granularity, **options)  # type: ignore[arg-type]
    return list(value.thresholds(model, relus(model), {}, None).values())


def test_chain_is_normalized_as_by_diehl() -> None:
    # The published loop: divide each layer by M = max_j sum_i max(0, W_ji); the factors multiply up to thresholds.
    model = network()
    product, expected = 1.0, []
    for name in ("0", "4"):
        weight = model.get_submodule(name).weight.detach().double().numpy()  # type: ignore[union-attr]
        product *= max(sum(max(0.0, w) for w in row.ravel()) for row in weight)
        expected.append(product)
    assert [bound.item() for bound in bounds(model)] == pytest.approx(expected, rel=1e-12)


def test_worst_case_of_the_first_layer_is_reached_bias_included() -> None:
    model = traced(nn.Sequential(nn.Linear(7, 5), nn.ReLU()), 7)
    layer = model.get_submodule("0")
    with torch.no_grad():
        layer.weight[:, 0] = 1  # type: ignore[index]
    reached = layer((layer.weight > 0).float()).diagonal().clamp_min(0).double()  # type: ignore[operator]
    torch.testing.assert_close(bounds(model, PerChannel())[0], reached.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(bounds(model)[0], reached.max().detach(), rtol=1e-6, atol=1e-7)


class Block(nn.Module):
    """Everything that a bound exists for: groups, BatchNorm, residual addition, cat, pools, flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=4, stride=2)
        self.conv3 = nn.Conv2d(8, 8, 1, stride=2)
        self.relu1, self.relu2, self.relu3, self.relu4 = (nn.ReLU() for _ in range(4))
        self.pool, self.average, self.flatten = nn.MaxPool2d(2, padding=1), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        self.linear = nn.Linear(16 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.norm(self.conv1(x)))
        a = self.relu2(operator.add(self.conv2(x), self.conv3(x)))
        x = torch.cat([a, self.relu3(torch.add(a, a))], 1)
        return self.relu4(self.linear(self.flatten(self.average(self.pool(x)))))


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_no_input_exceeds_the_bounds_of_a_graph(granularity: Granularity, low: float) -> None:
    block = Block().eval()
    block.norm.running_mean.normal_()  # type: ignore[union-attr]
    block.norm.running_var.uniform_(0.2, 2)  # type: ignore[union-attr]
    nn.init.normal_(block.norm.weight)
    model = traced(block, 2, 8, 8)
    sites = relus(model)
    assert len(sites) == 4
    thresholds = ModelBased(granularity=granularity, input_range=(low, 1.0)).thresholds(model, sites, {}, None)
    seen: dict[str, Tensor] = {}
    for site in sites:
        model.get_submodule(site.target).register_forward_hook(lambda _, __, y, key=site.key: seen.update({key: y}))
    binary = torch.randint(0, 2, (500, 2, 8, 8)) * (1 - low) + low
    with torch.no_grad():
        model(binary)
    for key, values in seen.items():
        largest = values.movedim(1, 0).flatten(1).amax(1).double()
        assert (largest <= thresholds[key] * (1 + 1e-6)).all()
        assert thresholds[key].max() < 1e3 * largest.max()  # and the bounds say something


def test_a_clipped_activation_bounds_what_follows() -> None:
    model = traced(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4, bias=False), nn.ReLU()), 4)
    with torch.no_grad():
        model.get_submodule("0").weight.fill_(10)  # type: ignore[operator]
        model.get_submodule("2").weight.fill_(1)  # type: ignore[operator]
    sites = [Site("a", "1", cap=2.0), Site("b", "3")]
    thresholds = ModelBased().thresholds(model, sites, {}, None)
    assert [thresholds[key].item() for key in ("a", "b")] == [2, 8]


def test_a_flattened_channel_keeps_its_own_bound() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 100.0]).view(2, 1, 1))  # type: ignore[operator]
        model[3].weight.copy_(torch.tensor([[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]))  # type: ignore[operator]
        reached = model(torch.ones(1, 1, 3))[0].double()
    torch.testing.assert_close(bounds(traced(model, 1, 3), PerChannel())[1], reached, rtol=1e-6, atol=0)


@pytest.mark.parametrize("padding", [1, "same"])
def test_zeros_of_a_padded_convolution_are_among_its_inputs(padding: int | str) -> None:
    model = nn.Sequential(nn.Conv1d(1, 1, 3, padding=padding), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(-1)  # type: ignore[operator]
        model[0].bias.fill_(2.5)  # type: ignore[operator]
    largest = model(torch.ones(1, 1, 6)).max().item()
    assert bounds(traced(model, 1, 6), input_range=(0.9, 1.0))[0].item() >= largest > 0


def test_zeros_of_padding_are_among_what_a_pool_sees() -> None:
    model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.AvgPool1d(2, padding=1), nn.Conv1d(1, 1, 1), nn.ReLU())
    with torch.no_grad():
        for index, weight, bias in ((0, -1.0, -5.0), (2, 1.0, 3.0)):
            model[index].weight.fill_(weight)  # type: ignore[operator]
            model[index].bias.fill_(bias)  # type: ignore[operator]
    largest = model(torch.rand(50, 1, 6)).max().item()
    assert 0 < largest <= bounds(traced(model, 1, 6))[0].item()


def test_features_behind_a_flatten_have_bounds_of_their_own() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.ReLU())
    found = bounds(traced(model, 1, 4), PerChannel())[0]
    reached = model(torch.randint(0, 2, (500, 1, 4)).float()).amax(0).double()
    torch.testing.assert_close(found, reached.clamp_min(0), rtol=1e-6, atol=1e-7)


CANNOT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.ReLU()), (4,)),
    "2": (lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Tanh(), nn.ReLU()), (1, 4)),
    "0": (lambda: nn.Sequential(nn.ConvTranspose1d(1, 2, 3), nn.ReLU()), (1, 4)),
}


@pytest.mark.parametrize("path", CANNOT)
def test_what_has_no_bound_is_named_with_a_remedy(path: str) -> None:
    network, shape = CANNOT[path]
    model = traced(network(), *shape)
    with pytest.raises(UnsupportedError, match=rf"ModelBased cannot normalize: {path}: .*Percentile\(\)") as caught:
        bounds(model, PerChannel())
    assert caught.value.problems[0].path == path


def test_a_bound_beyond_float32_or_no_number_is_refused() -> None:
    for value in (1e38, float("nan")):
        model = traced(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()), 4)
        with torch.no_grad():
            model.get_submodule("2").weight.fill_(value)  # type: ignore[operator]
            model.get_submodule("0").weight.fill_(2)  # type: ignore[operator]
        with pytest.raises(UnsupportedError, match="beyond float32"):
            bounds(model)


def test_only_what_leads_to_a_site_must_have_a_bound_and_only_relus_are_sites() -> None:
    model = traced(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), nn.Softmax(1)), 4)
    assert len(bounds(model)) == 1
    with pytest.raises(UnsupportedError, match="signed site"):
        ModelBased().thresholds(model, [Site("1", "1", SiteKind.SIGNED)], {}, None)
    for options in ({"input_range": (1.0, 0.0)}, {"granularity": PerChannel(2)}):
        with pytest.raises(ValueError, match="ModelBased"):
            ModelBased(**options)  # type: ignore[arg-type]
