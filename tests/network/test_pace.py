"""Functions of sums, static values and biases keep the pace of weighted spikes."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.network.time import ExpandTime, PacedConstant
from conversion_ext.neurons import WeightedEncoder, WeightedIF
from conversion_ext.nn import Differential
from conversion_ext.nn.matrix_product import MatrixProduct
from conversion_ext.types import Family, Steps
from tests.capture.test_attention import NETWORKS, randomized
from tests.recipes.test_default_attention import network

WEIGHTS = (8, 4, 2, 1)
T = len(WEIGHTS)
PACE = tuple(w * T / sum(WEIGHTS) for w in accumulate(WEIGHTS))


def weighted(lookahead: int = 1) -> cx.Recipe:
    return cx.Recipe(
        cx.MeanSquaredError(granularity=cx.PerChannel(-1)),
        WeightedIF(lookahead=lookahead),
        family="weighted",
        relay=True,
        signed_encoder=WeightedEncoder(lookahead=lookahead),
    )


def steady(value: Tensor) -> Tensor:
    """Return what spikes of each weight give that are sent at every step: shares of T times the value."""
    shares = torch.tensor(PACE, dtype=value.dtype).diff(prepend=torch.zeros(1, dtype=value.dtype))
    return value * shares.view(-1, *[1] * value.dim())


def test_functions_of_the_mean_know_it_from_the_first_step_on() -> None:
    """Where every step says the same of the mean, each output says the same of the function."""
    x = torch.randn(3, 5, dtype=torch.float64)
    module = Differential(torch.exp, step_mode="m")
    module.pace = PACE
    torch.testing.assert_close(module(steady(x)), steady(x.exp()))
    a, b = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 4, 5, dtype=torch.float64)
    product = MatrixProduct(step_mode="m")
    product.pace = PACE
    torch.testing.assert_close(product(steady(a), steady(b)), steady(a @ b))


def test_static_values_and_constant_parts_come_in_the_same_shares() -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    expand = ExpandTime()
    expand.pace = PACE
    torch.testing.assert_close(expand(x, Steps(T, constant=True)).unflatten(0, (T, -1)), steady(x))
    for constant in (torch.randn(1, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)):
        rows = x if len(constant) == 1 else x.repeat(2, 1)
        parts = constant.repeat(len(rows) // len(constant), 1)
        given = (steady(rows) + parts).flatten(0, 1)
        found = PacedConstant(constant, PACE)(given, Steps(T)).unflatten(0, (T, -1))
        torch.testing.assert_close(found, steady(rows + parts))


def test_after_all_steps_nothing_of_the_pace_is_left() -> None:
    """Sums of all outputs are those of a rate: p_T = T."""
    x_seq = torch.randn(T, 2, 3, dtype=torch.float64)
    sums = []
    for pace in (PACE, None):
        module = Differential(torch.tanh, step_mode="m")
        module.pace = pace
        sums.append(module(x_seq).sum(0))
    torch.testing.assert_close(*sums)


@pytest.mark.parametrize("backend", available())
def test_weighted_spikes_carry_attention(backend: str) -> None:
    """Every linear layer but that of the input sees weighted spikes; errors at T = 8 are far below those of a rate."""
    ann, calibration, x = network()
    expected = ann(x).detach()
    snn = cx.convert(ann, calibration, T=8, recipe=weighted(), backend=backend, progress=False)
    seen = [row.sees for row in snn.conversion.table() if row.kind == "synapse"]
    assert seen.count(Family.WEIGHTED) == len(seen) - 1
    run = cx.simulate(snn, x, 8, record=("spikes",))
    assert run.latency_steps == 8 + 9
    error = float((run.output - expected).norm() / expected.norm())
    rate = cx.convert(ann, calibration, T=8, recipe="default-attention", backend="reference", progress=False)
    assert error < 0.5 * float((cx.simulate(rate, x, 8).output - expected).norm() / expected.norm())


def test_constant_parts_are_what_biases_bring_and_folding_keeps_them() -> None:
    ann, calibration, x = network()
    outputs = []
    for fold in (True, False):
        snn = cx.convert(ann, calibration, T=4, recipe=weighted(), fold=fold, backend="reference", progress=False)
        assert any(isinstance(m, PacedConstant) for m in snn.body.modules())
        outputs.append(cx.simulate(snn, x, 4).output)
    torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)


def test_they_are_kept(tmp_path) -> None:
    ann = randomized(NETWORKS["unbind"]()).float()
    x = torch.randn(8, 5, 12)
    snn = cx.convert(ann, x, T=4, recipe=weighted(), backend="reference", progress=False)
    cx.save(snn, tmp_path / "a.safetensors")
    assert torch.equal(cx.simulate(cx.load(tmp_path / "a.safetensors"), x, 4).output, cx.simulate(snn, x, 4).output)


def test_networks_of_relu_alone_are_as_they_were() -> None:
    ann = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    snn = cx.convert(ann, torch.randn(64, 6), T=4, recipe="default-weighted", backend="reference", progress=False)
    assert not any(isinstance(m, PacedConstant) for m in snn.body.modules())


def test_the_table_says_which_share_of_the_work_spikes_drive() -> None:
    """Of 5 positions with 12 features in 3 heads: the layer of the input, products of attention, and all the rest."""
    ann, calibration, x = network("unbind")
    snn = cx.convert(ann, calibration, T=4, recipe="default-attention", backend="reference", progress=False)
    table = snn.conversion.table()
    macs = {row.key: row.macs for row in table if row.macs}
    products = [row.macs for row in table if row.kind == "MatrixProduct"]
    assert products == [3 * 5 * 5 * 4] * 2
    assert macs["heads.qkv"] == 5 * 12 * 36
    analog = sum(row.macs for row in table if row.sees is Family.ANALOG and row.kind == "synapse")
    total = 5 * 12 * (12 + 36 + 12) + 12 * 4 + sum(products)
    assert sum(macs.values()) == total
    assert table.spike_driven == pytest.approx(1 - (analog + sum(products)) / total)
    assert f"{100 * table.spike_driven:.1f} % of {total:,} multiply-adds work on spikes." in str(table)
    count = cx.synops(snn, x, 4)
    scales = count.macs - total  # one product for each value that is scaled
    assert 0 <= scales < 0.05 * total
    assert [(r.macs, r.analog_macs) for r in count.layers if r.sees is Family.GRADED and r.macs == 300] == [
        (300, 4 * 300)
    ] * 2
    assert count.spike_driven == pytest.approx((total - sum(products) - analog) / count.macs)
    assert f"{100 * count.spike_driven:.1f} % of the multiply-adds" in str(count)
