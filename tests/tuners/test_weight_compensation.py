"""Weight compensation against a general least-squares solver, and the geometry of every layer against the layer."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.tuners import WeightCompensation, weight_compensation
from conversion_ext.tuners.weight_compensation import patches
from conversion_ext.types import PerLayer
from tests import zoo
from tests.live import live, live_inputs, make_live

LAYERS = {
    "linear": (nn.Linear(7, 5), (4, 7)),
    "linear over a sequence": (nn.Linear(7, 5), (4, 3, 7)),
    "1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9)),
    "2d": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (3, 4, 7, 6)),
    "same": (nn.Conv2d(4, 6, (4, 3), padding="same", dilation=(1, 2)), (3, 4, 7, 8)),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), (3, 4, 7, 8)),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (3, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), (3, 4, 5, 5)),
    "3d": (nn.Conv3d(2, 4, (1, 2, 3), padding=(0, 1, 1), groups=2), (2, 2, 3, 4, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", LAYERS)
def test_patches_are_what_a_layer_reads(name):
    layer, shape = LAYERS[name]
    layer = layer.double()
    x = torch.rand(shape, dtype=torch.float64)
    read = patches(x, layer)
    weight = layer.weight.flatten(1).unflatten(0, (getattr(layer, "groups", 1), -1))
    y = (read @ weight.mT).transpose(0, 1).flatten(1) + layer.bias
    expected = layer(x) if isinstance(layer, nn.Linear) else layer(x).movedim(1, -1)
    torch.testing.assert_close(y, expected.reshape(y.shape))


@pytest.mark.parametrize("name", [name for name in LAYERS if "linear" not in name and "padding" not in name])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_chosen_positions_are_those_of_all(name):
    layer, shape = LAYERS[name]
    x = torch.rand(shape, dtype=torch.float64)
    chosen = tuple(slice(axis % 2, None, 2) for axis in range(x.dim() - 2))
    every = patches(x, layer).unflatten(1, (len(x), *layer.double()(x).shape[2:]))
    assert torch.equal(patches(x, layer, chosen), every[(slice(None), slice(None), *chosen)].flatten(1, -2))


def test_the_rows_of_a_layer_of_many_groups_take_bounded_memory(monkeypatch):
    ann = make_live(
        nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16)), 2, 12, 12
    )
    x = live_inputs(ann, 2, 12, 12, samples=64)
    seen = list[int]()

    def error() -> float:
        return float((cx.simulate(converted(ann, x, 4, anchor=0.0), x, 4).output - ann(x).detach()).square().mean())

    def counted(values: torch.Tensor, *rest: object) -> torch.Tensor:
        read = patches(values, *rest)
        seen.append(4 * read.shape[0] * read.shape[1] * (read.shape[2] + 1))
        return read

    monkeypatch.setattr(weight_compensation, "ROWS_PER_FEATURE", 5)
    least = error()  # 64 x 10 x 10 rows
    monkeypatch.setattr(weight_compensation, "BYTES", 1 << 20)
    monkeypatch.setattr(weight_compensation, "patches", counted)
    assert error() < 1.1 * least
    assert sum(seen) < 1.5 * (1 << 20)  # 4.1 MB of all rows; positions are dropped in whole strides


def test_a_part_of_the_positions_is_nearly_as_good_as_all(monkeypatch):
    """Fitted to every fourth position: over all positions it loses less than a tenth of what fitting to all gains."""
    ann = make_live(nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)), 2, 12, 12)
    x = live_inputs(ann, 2, 12, 12, samples=256)

    def error(snn: nn.Module) -> float:
        return float((cx.simulate(snn, x, 4).output - ann(x).detach()).square().mean())

    least = error(converted(ann, x, 4, anchor=0.0))  # 36,864 rows: all of them
    monkeypatch.setattr(weight_compensation, "ROWS", 9_000)
    sparse = error(converted(ann, x, 4, anchor=0.0))
    untuned = error(cx.convert(ann, x, recipe=cx.Recipe(cx.Percentile(99.0)), progress=False))
    assert least < sparse < least + 0.1 * (untuned - least)


def converted(ann, x, T, **options):
    recipe = cx.Recipe(cx.Percentile(99.0), tuners=(WeightCompensation(**options),))
    return cx.convert(ann, list(x.split(16)), recipe=recipe, T=T, backend="reference", progress=False, fold=False)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_the_size_of_activations_does_not_matter(size):
    """As in a network that was never trained; beside them stands the 1 that the bias reads."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    x = torch.randn(160, 6)
    expected = cx.simulate(converted(ann, x, 4), x, 4).output
    with torch.no_grad():
        ann[0].weight *= size
        ann[2].weight /= size
    found = cx.simulate(converted(ann, x, 4), x, 4).output
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("anchor", [0.0, 0.7])
def test_the_last_layer_is_the_ridge_solution(anchor):
    """Solved by torch.linalg.lstsq on the stacked system, with the penalties as further rows."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = torch.randn(50, 6, dtype=torch.float64)
    T, ridge = 3, 0.05
    plain = cx.convert(
        ann, x, recipe=cx.Recipe(cx.Percentile(99.0)), T=T, backend="reference", progress=False, fold=False
    )
    rate = cx.simulate(plain, x, T).firing_rate["1"] * plain.conversion.thresholds["1"]
    head: nn.Linear = ann[2]  # type: ignore[assignment]
    start = torch.cat((head.weight, head.bias[:, None]), 1).detach()
    features = torch.cat((rate, torch.ones(50, 1, dtype=torch.float64)), 1)
    penalty = torch.full((9,), float(ridge * rate.square().sum() / 8), dtype=torch.float64).sqrt()
    penalty[-1] = 0.0
    true = torch.cat((ann[:2](x).detach(), torch.ones(50, 1, dtype=torch.float64)), 1) * anchor**0.5
    left = torch.cat((features, penalty.diag(), true))
    right = torch.cat((ann(x).detach(), penalty[:, None] * start.T, true @ start.T))
    expected = torch.linalg.lstsq(left, right).solution.T
    tuned = converted(ann, x, T, ridge=ridge, anchor=anchor).body.get_submodule("2")
    torch.testing.assert_close(tuned.weight, expected[:, :-1])
    torch.testing.assert_close(tuned.bias, expected[:, -1])


@pytest.mark.parametrize("name", ["residual", "inception", "bottleneck", "dense"])
def test_outputs_come_closer_to_the_ann(name):
    ann, x = live(name, samples=48)
    plain = cx.convert(ann, x, recipe=cx.Recipe(cx.Percentile(99.0)), T=4, backend="reference", progress=False)
    outputs = [cx.simulate(snn, x, 4).output for snn in (plain, converted(ann, x, 4))]
    errors = [float((output - ann(x).detach()).norm()) for output in outputs]
    assert errors[1] < 0.7 * errors[0], errors


def test_what_a_site_cannot_tell_apart_does_not_count():
    """A target that a rectifier turns into the right output already is no reason to change the weights."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        ann[2].bias.fill_(-100.0)  # all activations are 0, and stay so whatever the rates before
    x = torch.randn(40, 4, dtype=torch.float64)
    with pytest.warns(UserWarning, match="Not active"):
        tuned = converted(ann, x, 2)
    assert torch.equal(tuned.body.get_submodule("2").weight, ann[2].weight)


def test_layers_that_are_called_twice_stay():
    ann = make_live(zoo.Tied(), *zoo.IMAGE).double()
    x = live_inputs(ann, *zoo.IMAGE, samples=8)
    tuned = converted(ann, x, 4)
    assert any(torch.equal(p, ann.conv.weight) for p in tuned.parameters())


@pytest.mark.parametrize("bad", [{"ridge": 0.0}, {"ridge": "small"}, {"anchor": -1}, {"iterations": 0}])
def test_bad_parameters_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        WeightCompensation(**bad)


@pytest.mark.parametrize("width", [5, 6])
def test_thresholds_of_other_dimensions_than_the_outputs_bound_no_target(width, monkeypatch):
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
                        nn.Flatten(), nn.Linear(36 * width, 3)).eval()  # fmt: skip
    x = torch.rand(16, 2, 6, width, generator=torch.Generator().manual_seed(1))
    by_column = cx.Recipe(cx.MeanSquaredError(granularity=cx.PerChannel(-1)), tuners=(WeightCompensation(),))
    sites = list[object]()
    solve = weight_compensation._Regression.solve
    monkeypatch.setattr(
        weight_compensation._Regression, "solve", lambda self, *args: sites.append(self.site) or solve(self, *args)
    )
    snn = cx.convert(ann, x, recipe=by_column, T=4, fold=False, progress=False)
    assert sites == [None, None]  # columns are no outputs, whatever their number
    assert bool(cx.simulate(snn, x, 4).output.isfinite().all())


def test_a_gram_matrix_that_rounding_made_indefinite_has_a_factor_and_others_keep_theirs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 40, 6, generator=generator, dtype=torch.float64)
    matrices = x.mT @ x
    row = 0.5 + torch.rand(6, generator=generator, dtype=torch.float64)
    rounded = 5e-7 * torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrices[1] = torch.outer(row, row) + rounded + rounded.mT  # of rank 1, as what is constant
    matrices[2] = 3e4 * (torch.outer(row, row) - 1e-5 * torch.eye(6, dtype=torch.float64))
    for indefinite in matrices[1:]:
        assert torch.linalg.eigvalsh(indefinite)[0] < 0
    factors = weight_compensation._cholesky(matrices)
    assert torch.equal(factors[0], torch.linalg.cholesky(matrices[:1])[0])
    torch.testing.assert_close(factors @ factors.mT, matrices, rtol=1e-3, atol=1e-5)
    with pytest.raises(RuntimeError, match="cholesky"):
        weight_compensation._cholesky(-matrices)


def test_groups_that_get_no_spikes_beside_constant_activations_are_refitted():
    """Their products are of rank 1, and rounding makes them indefinite: torch could not factorize them."""
    torch.manual_seed(0)
    first = nn.Conv2d(1, 8, 3, padding=1)
    with torch.no_grad():
        first.weight[:4] = 0
        cast(Tensor, first.bias)[:4] = torch.tensor([1e-3, 1e-2, 0.1, 0.123])  # too little for a spike in two steps
        cast(Tensor, first.bias)[4:] += 1
    layers = (first, nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Flatten())
    ann = nn.Sequential(*layers, nn.Linear(800, 3)).eval()
    x = torch.rand(64, 1, 12, 12)
    errors = []
    for tuners in ((), (WeightCompensation(),)):
        recipe = cx.Recipe(cx.Maximum(granularity=PerLayer()), cx.IF(v_init=0.0), tuners=tuners)
        snn = cx.convert(ann, x, recipe=recipe, T=2, backend="reference", progress=False)
        errors.append(float((cx.simulate(snn, x, 2).output - ann(x).detach()).norm()))
    assert errors[1] < 0.5 * errors[0]
