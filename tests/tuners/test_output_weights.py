"""Weights of steps in the mean output: least squares against a search, on every path to an output."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.readouts import MeanOutput
from conversion_ext.training.student import Student
from conversion_ext.tuners import BlockReconstruction, InitialPotential, OutputWeights, Tuner, WeightCompensation
from conversion_ext.types import Steps
from tests import zoo
from tests.live import live_inputs, make_live

pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data")
T = 4


def case(samples: int = 96) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    ann = make_live(zoo.Residual(), *zoo.IMAGE).double()
    return ann, live_inputs(ann, *zoo.IMAGE, samples=samples)


def converted(ann: Any, x: Any, steps: int = T, **options: Any) -> Any:
    recipe = cx.Recipe(cx.Percentile(99.0), cx.IF(v_init=0.5), tuners=(OutputWeights(),))
    return cx.convert(ann, x, **{"recipe": recipe, "T": steps, "backend": "reference", "progress": False} | options)


def outputs_of(snn: Any, x: torch.Tensor, steps: int = T) -> torch.Tensor:
    """The outputs of single steps, [T, N, C]."""
    cx.reset(snn)
    with torch.no_grad():
        return torch.stack([snn(x) for _ in range(steps)])


@pytest.mark.parametrize("before", [(), (BlockReconstruction(steps=10, rate=0.1),)], ids=["alone", "behind another"])
def test_no_other_weights_leave_less_error(before: tuple[Tuner, ...]):
    """Against all weights on a grid, and a little beside those found; in the network that earlier tuners leave."""
    ann, x = case()
    recipe = cx.Recipe(cx.Percentile(99.0), cx.IF(v_init=0.5), tuners=(*before, OutputWeights()))
    snn = converted(ann, x, 3, recipe=recipe)
    weights = torch.tensor(snn.conversion.recipe.readout.weights, dtype=torch.float64)
    assert len(weights) == 3
    assert float(weights.sum()) == pytest.approx(1)
    assert float(weights.min()) >= 0
    errors = (outputs_of(snn, x, 3) - ann(x).detach()).flatten(1)

    def error(w: Any) -> float:
        return float((torch.as_tensor(w, dtype=torch.float64) @ errors).square().sum())

    grid = [(i / 40, j / 40, (40 - i - j) / 40) for i, j in itertools.product(range(41), repeat=2) if i + j <= 40]
    assert error(weights) <= min(map(error, grid)) * 1.002  # a small ridge draws them together
    assert error(weights) < error([1 / 3] * 3)


def test_the_output_is_the_weighted_mean_of_the_steps():
    ann, x = case()
    snn = converted(ann, x)
    weights = snn.conversion.recipe.readout.weights
    steps = outputs_of(snn, x[:8], 7)
    run = cx.simulate(snn, x[:8], 7)
    for t in range(1, 8):
        shares = torch.tensor([weights[min(k, T - 1)] for k in range(t)], dtype=torch.float64)
        torch.testing.assert_close(run.outputs[t - 1], torch.einsum("t,tnc->nc", shares / shares.sum(), steps[:t]))
    plain = cx.simulate(snn, x[:8], 7, readout=MeanOutput()).outputs
    torch.testing.assert_close(plain[-1], steps.mean(0))
    assert (cx.simulate(snn, x, T).output - ann(x)).norm() <= (outputs_of(snn, x).mean(0) - ann(x)).norm()


def test_a_network_of_one_step_is_as_it_was_and_later_steps_count_alike():
    assert [MeanOutput(weights=(1, 3)).weight(t) for t in (1, 2, 3, 50)] == [1, 3, 3, 3]
    ann, x = case(32)
    assert converted(ann, x, 1).conversion.recipe.readout.weights == (1.0,)


@pytest.mark.parametrize("backend", ["spikingjelly", "snntorch"])
def test_saved_networks_and_every_framework_keep_them(backend, tmp_path):
    pytest.importorskip(backend)
    ann, x = case()
    ann, x = ann.float(), x.float()
    snn = converted(ann, x, backend=backend)
    assert snn.conversion.recipe.readout.weights == converted(ann, x).conversion.recipe.readout.weights
    cx.save(snn, tmp_path / "net.cxsnn")
    again = cx.load(tmp_path / "net.cxsnn")
    assert again.conversion.recipe.readout == snn.conversion.recipe.readout
    assert torch.equal(cx.simulate(again, x[:8], T).outputs, cx.simulate(snn, x[:8], T).outputs)


def test_only_the_mean_over_steps_of_one_input_gets_weights():
    ann, x = case(32)
    recipe = cx.Recipe(cx.Percentile(99.0), cx.IF(), tuners=(OutputWeights(),))
    for other in (MeanOutput(start=1), cx.readouts.MembranePotential(0.9)):
        assert converted(ann, x, recipe=replace(recipe, readout=other)).conversion.recipe.readout == other
    assert converted(ann, x, recipe=replace(recipe, block=None)).conversion.recipe.readout == MeanOutput()
    frames = x.unflatten(0, (4, 8))
    assert converted(ann, [(frames,)], sequence=True).conversion.recipe.readout == MeanOutput()
    for bad in ((1.0, 0.0), (-1.0, 1.0), (float("nan"),), ("a",)):
        with pytest.raises(ValueError, match="weights="):
            MeanOutput(weights=bad)  # type: ignore[arg-type]


def test_where_no_step_errs_they_weigh_alike():
    silent = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    for p in silent.parameters():
        nn.init.zeros_(p)
    assert converted(silent, torch.rand(16, 3).double()).conversion.recipe.readout == MeanOutput()


def test_fine_tuning_learns_what_the_readout_reads():
    ann, x = case()
    ann, x = ann.float(), x.float()
    snn = converted(ann, x)
    student = Student(snn, ("weights",), None, True, False)
    outputs, _ = student((x[:8],), Steps(T, constant=True))
    torch.testing.assert_close(outputs.mean(0), cx.simulate(snn, x[:8], T).output, rtol=1e-5, atol=1e-5)
    cx.reset(student.snn)
    again, _ = student((x[:8],), Steps(T, constant=True), 2)  # in parts, run once more in the backward pass
    torch.testing.assert_close(again, outputs, rtol=1e-5, atol=1e-5)


def test_default_recipes_weigh_steps_where_the_network_is_deep():
    ann, x = case()
    recipe = cx.recipes.get("default")
    assert recipe.tuners == (WeightCompensation(), InitialPotential(), OutputWeights())
    weights = cx.convert(ann, x, T=T, backend="reference", progress=False).conversion.recipe.readout.weights
    assert weights[-1] > 1 / T > weights[0]
    assert cx.recipes.get("default-weighted").tuners.count(OutputWeights()) == 0
    shallow = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)).double()
    even = cx.convert(shallow, torch.rand(64, 6).double(), T=T, backend="reference", progress=False)
    assert max(even.conversion.recipe.readout.weights) < 0.6
