"""Law 8: statistics do not depend on order, and quantiles are within 0.1 % of those of the whole data."""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from conversion_ext.calibration import histogram as statistics
from conversion_ext.calibration import moments as moments_of
from conversion_ext.calibration.observer import Observer
from conversion_ext.calibration.statistics import ActivationStats
from conversion_ext.errors import CalibrationError
from conversion_ext.operators.sites import Site, SiteKind
from conversion_ext.types import Granularity, PerChannel, PerLayer

PERCENTILES = (0.01, 1, 25, 50, 90, 99, 99.9, 99.99, 100)
Make = Callable[[], Tensor]
DATA: dict[str, Make] = {
    "relu": lambda: torch.randn(40, 5, 13, 7).relu(),
    "signed": lambda: torch.randn(40, 5, 13, 7),
    "heavy tail": lambda: torch.exp(torch.randn(40, 5, 200) * 2),
    "Cauchy": lambda: torch.empty(40, 5, 200).cauchy_(),
    "tiny": lambda: torch.randn(40, 5, 50).abs() * 1e-30,
    "huge": lambda: torch.randn(40, 5, 50).abs() * 1e30,
    "sparse": lambda: torch.where(torch.rand(40, 5, 500) < 5e-4, torch.rand(40, 5, 500), 0.0),
    "constant": lambda: torch.full((7, 5, 3), 0.3),
    "few levels": lambda: torch.randint(0, 4, (40, 5, 50)).float(),
    "zeros": lambda: torch.zeros(7, 5, 3),
    "negative": lambda: -torch.rand(7, 5, 3),
    "one element": lambda: torch.tensor([[2.5]]),
    "channels 60 decades apart": lambda: torch.rand(40, 5, 50) * torch.logspace(-30, 30, 5)[:, None],
}


def stats_of(batches: Sequence[Tensor], granularity: Granularity, *, absolute: bool = False) -> ActivationStats:
    stats = ActivationStats("site", granularity, absolute=absolute)
    for batch in batches:
        stats.update(batch)
    return stats


def columns(x: Tensor, granularity: Granularity) -> list[np.ndarray]:
    """The activations of each channel (or of all) as sorted float64."""
    if isinstance(granularity, PerLayer):
        return [np.sort(x.double().numpy(), axis=None)]
    return [np.sort(column.double().numpy(), axis=None) for column in x.movedim(granularity.dim, 0)]


def exact_quantile(values: np.ndarray, p: float) -> float:
    """Linear between the two neighbours of the place p / 100 (n - 1), that place as a fraction."""
    place = Fraction(str(p)) / 100 * (len(values) - 1)
    k, share = floor(place), float(place - floor(place))
    above = values[min(k + 1, len(values) - 1)]
    return float(values[k] + (above - values[k]) * share)


def assert_same(a: ActivationStats, b: ActivationStats) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert len(first) > 3
    for name, value in first.items():
        if isinstance(value, Tensor):
            assert value.dtype == second[name].dtype
            assert torch.equal(value, second[name]), name
        else:
            assert value == second[name], name


@pytest.mark.parametrize("granularity", [PerLayer(), PerChannel(1)], ids=repr)
@pytest.mark.parametrize("name", DATA)
def test_quantiles_are_within_a_thousandth_of_the_exact_ones(name: str, granularity: Granularity) -> None:
    x = DATA[name]()
    stats = stats_of(x.split(9), granularity)
    sorted_values = [np.maximum(column, 0) for column in columns(x, granularity)]
    for p in PERCENTILES:
        found = stats.quantile(p).reshape(-1)
        assert len(found) == len(sorted_values)
        for value, column in zip(found.tolist(), sorted_values, strict=True):
            exact = exact_quantile(column, p)
            if isinstance(granularity, PerChannel) and exact < column[-1] * 2.0**-22:
                assert 0 <= value <= column[-1] * 2.0**-22
            else:
                assert value == pytest.approx(exact, rel=1e-3, abs=0)


def test_quantile_agrees_with_torch_in_float64() -> None:
    x = torch.randn(30, 4, 200).relu()
    whole = x.double()
    for p in (50, 90, 99.9):
        layer = stats_of([x], PerLayer()).quantile(p)
        channel = stats_of([x], PerChannel()).quantile(p)
        torch.testing.assert_close(layer, torch.quantile(whole, p / 100), rtol=1e-3, atol=0)
        torch.testing.assert_close(
            channel, torch.quantile(whole.movedim(1, 0).flatten(1), p / 100, dim=1), rtol=1e-3, atol=0
        )


@pytest.mark.parametrize("value", [1.0, 0.3, 1.998, 7e-20])
def test_equal_activations_have_exactly_that_quantile(value: float) -> None:
    x = torch.full((9, 2), value)
    for p in (0.1, 50, 99.9, 100):
        assert torch.equal(stats_of([x], PerChannel()).quantile(p), x[0].double())


def test_a_layer_spanning_sixty_decades_keeps_the_bound() -> None:
    x = 10 ** (torch.rand(50, 100, dtype=torch.float64) * 60 - 30)
    stats = stats_of(x.float().split(7), PerLayer())
    for p in PERCENTILES:
        assert stats.quantile(p).item() == pytest.approx(exact_quantile(np.sort(x.numpy(), axis=None), p), rel=1e-3)


def test_quantile_is_exactly_zero_up_to_the_last_zero() -> None:
    # 99.9 % of 1001 values: the place 999 exactly, though 0.999 * 1000 is a hair more in floating point.
    x = torch.zeros(1001, 1)
    x[1000] = 1
    assert stats_of([x], PerLayer()).quantile(99.9).item() == 0


@pytest.mark.parametrize("granularity", [PerLayer(), PerChannel(1)], ids=repr)
@pytest.mark.parametrize("name", [name for name in DATA if name not in ("zeros", "negative")])
def test_positive_only_leaves_zeros_out(name: str, granularity: Granularity) -> None:
    x = DATA[name]()
    stats = stats_of(x.split(9), granularity)
    for index, column in enumerate(columns(x, granularity)):
        positive = column[column > 0]
        assert stats.positive_count.reshape(-1)[index] == len(positive)
        for p in (50, 99.9, 100):
            found = stats.quantile(p, positive_only=True).reshape(-1)[index].item()
            expected = exact_quantile(positive, p) if len(positive) else 0
            assert found == pytest.approx(expected, rel=1e-3, abs=0)


@pytest.mark.parametrize("name", ["zeros", "negative"])
def test_silence_has_quantile_zero_and_is_dead(name: str) -> None:
    stats = stats_of([DATA[name]()], PerChannel())
    for positive_only in (False, True):
        assert torch.equal(stats.quantile(99.9, positive_only), torch.zeros(5, dtype=torch.float64))
    assert stats.dead.all()
    assert torch.equal(stats.quantile(100), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [None, 1, 2, -1])
def test_extremes_and_counts_are_exact(dtype: torch.dtype, dim: int | None) -> None:
    granularity = PerLayer() if dim is None else PerChannel(dim)
    x = torch.randn(20, 6, 5, 4, dtype=torch.float64).to(dtype)
    x[:, 2, 3] = 0
    stats = stats_of(x.split(3), granularity)
    expected = columns(x, granularity)
    assert stats.maximum.reshape(-1).tolist() == [column[-1] for column in expected]
    assert stats.minimum.reshape(-1).tolist() == [column[0] for column in expected]
    assert stats.positive_count.reshape(-1).tolist() == [(column > 0).sum() for column in expected]
    assert stats.count == len(expected[0])
    assert stats.maximum.shape == (() if dim is None else (x.shape[dim],))


def test_narrow_floats_are_counted_as_the_same_numbers_in_float32() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(30, 3, 40).to(dtype)
        assert_same(stats_of(x.split(4), PerChannel()), stats_of(x.float().split(4), PerChannel()))


def rising_and_deep() -> Tensor:
    """Samples whose size climbs over 60 octaves, so windows move, deepen, and lose what falls below them."""
    size = torch.exp2(torch.linspace(-30, 30, 24))[:, None, None] * torch.tensor([1.0, 2.0**20, 0.0, 1e-3])[:, None]
    return torch.randn(24, 4, 50) * size


def tree(parts: list[ActivationStats], chance: random.Random) -> ActivationStats:
    """Merge in a random order, in random pairs."""
    while len(parts) > 1:
        chance.shuffle(parts)
        target = copy.deepcopy(parts.pop())
        target.merge(parts.pop())
        parts.append(target)
    return parts[0]


@pytest.mark.parametrize("granularity", [PerLayer(), PerChannel(1), PerChannel(-1)], ids=repr)
@pytest.mark.parametrize("make", [rising_and_deep, DATA["relu"], DATA["Cauchy"], DATA["sparse"]])
def test_any_order_any_split_any_merge_gives_the_same_bits(make: Make, granularity: Granularity) -> None:
    x = make()
    whole = stats_of([x], granularity)
    chance = random.Random(0)
    for _ in range(6):
        shuffled = x[torch.randperm(len(x))]
        cuts = sorted(chance.sample(range(1, len(x)), 7))
        batches = list(shuffled.tensor_split(cuts))
        assert_same(stats_of(batches, granularity), whole)
        parts = [stats_of(batches[start::3], granularity) for start in range(3)]
        parts += [ActivationStats("site", granularity)]
        assert_same(tree(parts, chance), whole)


def test_merging_leaves_the_other_as_it_was() -> None:
    first, second = (stats_of([x], PerChannel()) for x in rising_and_deep().split(12))
    before = copy.deepcopy(second)
    first.merge(second)
    first.update(torch.full((1, 4, 50), 1e30))
    assert_same(second, before)
    empty = ActivationStats("site", PerChannel())
    empty.merge(second)
    empty.update(torch.full((1, 4, 50), 1e30))
    assert_same(second, before)


def test_slices_of_any_size_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rising_and_deep()
    whole = stats_of([x], PerChannel())
    for size in (1, 17, 199, 1000):
        monkeypatch.setattr(statistics, "SLICE", size)
        assert_same(stats_of([x], PerChannel()), whole)


@pytest.mark.parametrize("granularity", [PerLayer(), PerChannel(1), PerChannel(2)], ids=repr)
def test_memory_format_does_not_matter(granularity: Granularity) -> None:
    x = torch.randn(6, 5, 4, 3)
    plain = stats_of([x], granularity)
    assert_same(stats_of([x.to(memory_format=torch.channels_last)], granularity), plain)
    assert_same(stats_of([x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)], granularity), plain)
    assert_same(stats_of([x.repeat_interleave(2, dim=3)[..., ::2]], granularity), plain)
    assert_same(stats_of([x[:1].expand(6, -1, -1, -1)], granularity), stats_of([x[:1].repeat(6, 1, 1, 1)], granularity))


def test_absolute_records_the_magnitude() -> None:
    x = torch.randn(20, 3, 8)
    recorded, plain = stats_of([x], PerChannel(), absolute=True), stats_of([x.abs()], PerChannel())
    assert torch.equal(recorded.quantile(90), plain.quantile(90))
    assert torch.equal(recorded.maximum, x.abs().amax((0, 2)).double())
    with pytest.raises(ValueError, match="merge like with like"):
        recorded.merge(plain)


@pytest.mark.parametrize(("most", "before", "after"), [((700, 1 << 31), 16, 32), ((400, 700), 32, 64)])
def test_counters_widen_before_they_overflow(
    monkeypatch: pytest.MonkeyPatch, most: tuple[int, int], before: int, after: int
) -> None:
    batches = torch.randn(30, 3, 50, generator=torch.Generator().manual_seed(0)).split(10)  # 1500 of each channel
    plain = stats_of(batches, PerChannel())
    kinds = {16: torch.int16, 32: torch.int32, 64: torch.int64}
    monkeypatch.setattr(statistics, "COUNTERS", tuple(zip(kinds.values(), (*most, 1 << 62), strict=True)))
    wide = stats_of(batches, PerChannel())
    left, right = (stats_of(part, PerChannel()) for part in (batches[:1], batches[1:]))
    assert left.bins().counts.dtype == kinds[before]
    left.merge(right)
    for stats in (wide, left):
        assert stats.bins().counts.dtype == kinds[after]
        assert torch.equal(stats.bins().counts.long(), plain.bins().counts.long())


def test_counts_beyond_16_bits_are_right() -> None:
    """A channel of as many equal numbers as 16 bits hold, and more: none is lost, whatever batch they came in."""
    x = torch.ones(1, 2, (1 << 15) - 1)
    stats = stats_of([x], PerChannel())
    assert stats.bins().counts.dtype == torch.int16
    assert stats.positive_count.tolist() == [(1 << 15) - 1] * 2
    stats.update(torch.ones(1, 2, 2))
    stats.merge(copy.deepcopy(stats))
    assert stats.bins().counts.max() == stats.count == 2 * ((1 << 15) + 1)
    assert stats.positive_count.tolist() == [stats.count] * 2


def test_counts_beyond_32_bits_are_right() -> None:
    state = stats_of([torch.ones(1, 1)], PerLayer()).state_dict()
    nearly = (1 << 31) - 3
    state["counters"] = state["counters"].int() * nearly
    stats = ActivationStats.from_state_dict({**state, "count": nearly})
    stats.update(torch.ones(10, 1))
    stats.merge(copy.deepcopy(stats))
    stats.update(torch.full((2, 1), 3.0))
    assert stats.count == stats.positive_count == 2 * (nearly + 10) + 2
    assert stats.quantile(99.99).item() == pytest.approx(1, rel=1e-3)
    assert stats.quantile(100).item() == 3


def test_what_falls_below_the_window_is_counted_and_bounded() -> None:
    x = torch.tensor([1.0] + [1e-12] * 99 + [1e-14, 0]).view(-1, 1)
    alone = stats_of([x], PerChannel())  # a single channel keeps every octave
    assert alone.quantile(50).item() == pytest.approx(1e-12, rel=1e-3)
    stats = stats_of(x.expand(-1, 2).split(1), PerChannel())
    assert stats.positive_count.tolist() == [101, 101]
    assert stats.quantile(100).tolist() == [1, 1]
    assert (stats.quantile(50) >= 1e-12).all()
    assert (stats.quantile(50) <= 2.0**-22).all()
    assert (stats.quantile(0.1) < 1e-7).all()


def test_bins_describe_every_number_they_hold() -> None:
    x = 10 ** (torch.rand(4000, dtype=torch.float64) * 5 - 4)
    values, counts, scale = stats_of([x.float().view(-1, 2)], PerChannel()).bins()
    for channel in range(2):
        held = np.repeat((values * scale[channel]).numpy(), counts[channel].numpy())
        np.testing.assert_allclose(held, np.sort(x.view(-1, 2)[:, channel].numpy()), rtol=1e-3)


def resnet50_sites() -> list[tuple[int, int]]:
    """(channels, height) of every ReLU call of torchvision's resnet50 on 224 x 224 images."""
    sites = [(64, 112)]
    for width, blocks, size in ((64, 3, 56), (128, 4, 28), (256, 6, 14), (512, 3, 7)):
        for block in range(blocks):
            first = size * 2 if block == 0 and width > 64 else size
            sites += [(width, first), (width, size), (4 * width, size)]
    return sites


def test_per_channel_statistics_of_a_resnet50_fit_into_one_and_a_half_gibibytes() -> None:
    sites = resnet50_sites()
    assert (len(sites), sum(channels for channels, _ in sites)) == (49, 22_720)
    sizes = []
    for channels, size in sites:
        x = torch.randn(2, channels, size, size).relu_()
        x[0, :, 0, 0] = 1e-20  # every window as deep as it may get, as on much data
        tensors = [v for v in stats_of([x], PerChannel()).state_dict().values() if isinstance(v, Tensor)]
        sizes.append(sum(v.untyped_storage().nbytes() for v in tensors))
    assert min(sizes) > 1e6  # something was measured
    # Moving windows copies at most one site twice; a slice of activations needs four tensors of its size.
    assert sum(sizes) + 2 * max(sizes) + 16 * statistics.SLICE < 1.5 * 2**30


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("granularity", [PerLayer(), PerChannel()], ids=repr)
def test_values_that_are_no_numbers_are_refused_and_change_nothing(bad: float, granularity: Granularity) -> None:
    stats = stats_of([torch.rand(4, 3)], granularity)
    before = copy.deepcopy(stats)
    x = torch.rand(4, 3)
    x[2, 1] = bad
    with pytest.raises(CalibrationError, match="activations of site hold values that are NaN"):
        stats.update(x)
    assert_same(stats, before)


def test_bad_input_is_named() -> None:
    with pytest.raises(CalibrationError, match="site saw no activation"):
        _ = ActivationStats("site", PerLayer()).maximum
    with pytest.raises(CalibrationError, match="beyond float32"):
        stats_of([torch.tensor([[1e300]], dtype=torch.float64)], PerLayer())
    with pytest.raises(CalibrationError, match="site had 3 channels, a later batch 4"):
        stats_of([torch.rand(2, 3), torch.rand(2, 4)], PerChannel())
    with pytest.raises(CalibrationError, match=r"PerChannel\(dim=2\) does not name a channel"):
        stats_of([torch.rand(2, 3)], PerChannel(2))
    with pytest.raises(CalibrationError, match="does not name a channel"):
        stats_of([torch.rand(3)], PerChannel(-1))
    with pytest.raises(CalibrationError, match=r"gives torch\.int64"):
        stats_of([torch.ones(2, 3).long()], PerLayer())
    for p in (0, -1, 101, float("nan")):
        with pytest.raises(ValueError, match="p must be a number in"):
            stats_of([torch.rand(2, 3)], PerLayer()).quantile(p)
    with pytest.raises(ValueError, match="3 channels and 4"):
        stats_of([torch.rand(2, 3)], PerChannel()).merge(stats_of([torch.rand(2, 4)], PerChannel()))


def test_empty_batches_add_nothing() -> None:
    stats = stats_of([torch.rand(4, 3), torch.empty(0, 3)], PerChannel())
    assert stats.count == 4
    assert ActivationStats("site", PerLayer()).count == 0


def test_state_survives_saving_pickling_and_copying() -> None:
    x = rising_and_deep()
    for granularity in (PerLayer(), PerChannel(1)):
        stats = stats_of([x], granularity)
        buffer = io.BytesIO()
        torch.save(stats.state_dict(), buffer)
        buffer.seek(0)
        loaded = ActivationStats.from_state_dict(torch.load(buffer, weights_only=True))
        again = [loaded, pickle.loads(pickle.dumps(stats)), copy.deepcopy(stats)]
        stats.update(x * 1e9)
        for other in again:
            other.update(x * 1e9)
            assert_same(other, stats)


SITES = [Site("first", "1"), Site("graded", "2", SiteKind.GRADED), Site("second", "4")]


def traced() -> GraphModule:
    return symbolic_trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Tanh(), nn.Conv2d(4, 2, 3), nn.ReLU()))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("granularity", [PerLayer(), PerChannel()], ids=repr)
def test_observer_sees_what_sites_put_out(granularity: Granularity) -> None:
    model = traced()
    batches = torch.randn(12, 1, 9, 9).split(5)
    with torch.inference_mode(), Observer(model, SITES, granularity) as observer:
        for batch in batches:
            model(batch)
    assert hooks(model) == 0
    assert list(observer.stats) == ["first", "graded", "second"]
    with torch.no_grad():
        first = [model.get_submodule("1")(model.get_submodule("0")(batch)) for batch in batches]
        seen = {"first": first, "graded": [x.tanh() for x in first], "second": [model(batch) for batch in batches]}
    for site in SITES:
        expected = ActivationStats(site.key, granularity, absolute=site.kind is SiteKind.GRADED)
        for x in seen[site.key]:
            expected.update(x)
        assert_same(observer.stats[site.key], expected)
    observer.stats["first"].update(torch.rand(1, 4, 7, 7))  # inference mode is over


def test_observer_leaves_no_hook_behind_when_something_fails() -> None:
    model = traced()
    broken = torch.full((1, 1, 9, 9), float("nan"))
    with Observer(model, SITES, PerLayer()):
        assert hooks(model) == 3
    with pytest.raises(CalibrationError, match="first"), Observer(model, SITES, PerLayer()):
        model(broken)
    assert hooks(model) == 0
    with pytest.raises(AttributeError):
        Observer(model, [*SITES, Site("missing", "nowhere")], PerLayer())
    assert hooks(model) == 0


@pytest.mark.parametrize("name", [n for n in DATA if n not in ("huge", "channels 60 decades apart")])
def test_moments_are_those_of_numpy_in_any_order(name: str) -> None:
    x = DATA[name]()
    x = x.reshape(x.shape[0], x.shape[1], -1)
    found: list[tuple[Tensor, Tensor]] = []
    for size in (len(x), 3):
        moments = moments_of.Moments(x.shape[1])
        for part in x[torch.randperm(len(x))].split(size):
            moments.add(part)
        found.append(moments.mean_and_std())
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    values = x.double().movedim(1, 0).flatten(1).numpy()
    scale = np.abs(values).max(1)
    np.testing.assert_allclose(found[0][0].numpy(), values.mean(1), atol=2e-5 * scale.max())
    np.testing.assert_allclose(found[0][1].numpy(), values.std(1), atol=2e-5 * scale.max(), rtol=1e-4)
