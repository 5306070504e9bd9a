"""Pictures: what is drawn is what was measured, and whatever misses is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext import plots
from conversion_ext.analysis.decomposition import decompose
from conversion_ext.analysis.operations import FortyFiveNanometres

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.rand(40, 6)
    snn = cx.convert(ann, x, T=4, backend="reference", progress=False)
    return ann.requires_grad_(False), x, snn


def test_every_picture_has_titles_and_can_be_saved(case, tmp_path):
    ann, x, snn = case
    target = ann(x).argmax(1)
    evaluation = cx.evaluate(snn, [(x, target)], 8, ann=ann, progress=False)
    run = cx.simulate(snn, x, 8, record=("spikes",))
    potentials = cx.simulate(snn, x, 8, record=("potential",))
    figures = [
        plots.accuracy(evaluation),
        plots.accuracy({"one": evaluation, "two": evaluation}),
        plots.frontier({"one": [(1, 0.5), (8, 0.9)]}, "latency (steps)", ann=0.95),
        plots.activation_against_rate(torch.rand(50), torch.rand(50), site="1"),
        plots.firing_rates(run),
        plots.raster(run, "1"),
        plots.membrane(potentials, "1"),
        plots.thresholds(snn.conversion),
        plots.errors(decompose(snn, data=x, T=4, ann=ann)),
        plots.energy(cx.synops(snn, x, 4), [FortyFiveNanometres()]),
    ]
    for number, figure in enumerate(figures):
        assert figure.axes[0].get_xlabel()
        assert vars(figure)["_repr_png_"]().startswith(b"\x89PNG")
        path = tmp_path / f"{number}.png"
        figure.savefig(path, dpi=120)
        assert matplotlib.image.imread(path)[..., :3].std() > 0.02


def test_the_line_is_the_accuracy_and_the_ann_is_drawn(case):
    ann, x, snn = case
    evaluation = cx.evaluate(snn, [(x, ann(x).argmax(1))], 8, ann=ann, progress=False)
    axes = plots.accuracy(evaluation).axes[0]
    line, level = (np.asarray(each.get_ydata()) for each in axes.lines)
    assert line.tolist() == (100 * evaluation.accuracy).tolist()
    assert level[0] == 100


def test_the_style_is_that_of_the_pictures():
    with matplotlib.rc_context(plots.STYLE):
        cycle = matplotlib.rcParams["axes.prop_cycle"].by_key()
    assert tuple(cycle["color"]) == plots.COLORS
    assert len(set(cycle["linestyle"])) > 3  # which black and white keeps apart


def test_the_interval_is_that_of_wilson():
    low, high = plots.interval(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), 100)
    # Published values for 0, 50 and 100 of 100.
    torch.testing.assert_close(low, torch.tensor([0.0, 0.4038, 0.9630], dtype=torch.float64), atol=2e-4, rtol=0)
    torch.testing.assert_close(high, torch.tensor([0.0370, 0.5962, 1.0], dtype=torch.float64), atol=2e-4, rtol=0)


def test_a_raster_shows_every_spike(case):
    _, x, snn = case
    run = cx.simulate(snn, x, 8, record=("spikes",))
    points = np.asarray(plots.raster(run, "1", sample=3).axes[0].collections[0].get_offsets())
    spikes = run.recorded["spikes"]["1"][:, 3]
    assert len(points) == int(spikes.sum())
    assert {int(t) for t, _ in points} == {t + 1 for t in range(8) if spikes[t].any()}


def test_what_is_missing_is_said(case):
    _, x, snn = case
    run = cx.simulate(snn, x, 4)
    with pytest.raises(ValueError, match=r"record=\('spikes',\)"):
        plots.raster(run, "1")
    with pytest.raises(ValueError, match="no site 'x'"):
        plots.raster(cx.simulate(snn, x, 4, record=("spikes",)), "x")
    with pytest.raises(ValueError, match="same neurons"):
        plots.activation_against_rate(torch.rand(3), torch.rand(4))
