"""Samples of a batch stay apart, and every view reads its own batch size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conversion_ext.capture.passes import batch_problems, run_passes
from conversion_ext.capture.tracing import capture
from tests.live import live_inputs
from tests.traps import TRAPS, Net, trap


@pytest.mark.parametrize(
    ("function", "key"),
    [
        (lambda n, x: torch.cat([F.relu(x), x]), "cat"),
        (lambda n, x: x - x.mean(0, keepdim=True), "mean"),
        (lambda n, x: x.permute(1, 0, 2, 3).relu(), "permute"),
        (lambda n, x: x[0], "getitem"),
        (lambda n, x: x.roll(1, 0), "roll"),
        (lambda n, x: x.view(4, -1), "view"),
        (lambda n, x: x.permute(1, 0, 2, 3).reshape(x.shape), "permute"),
        (lambda n, x: x.relu().sum(), "sum"),
    ],
)
@pytest.mark.parametrize("samples", [1, 4])
def test_mixing_of_samples_is_found(function: Any, key: str, samples: int) -> None:
    problems = batch_problems(capture(Net(function)), torch.randn(samples, 4, 4, 4))
    assert [problem.path for problem in problems] == [key]
    assert problems[0].line.startswith("test_batch.py:")


@pytest.mark.parametrize("name", TRAPS)
def test_independent_samples_pass(name: str) -> None:
    ann, shape = trap(name)
    model = capture(ann)
    x = live_inputs(ann, *shape, samples=3)
    run_passes(model, x)
    assert batch_problems(model, (x,)) == batch_problems(model, x) == []


def test_rounding_that_depends_on_the_batch_is_not_taken_for_mixing() -> None:
    class Rounding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (1 + 1e-9 * len(x))

    def amplified(net: Any, x: Tensor) -> Tensor:
        return (net.rounding(x) * 1e9).sin()

    ann = Net(amplified, rounding=Rounding())
    assert batch_problems(capture(ann, leaf=(Rounding,)), torch.randn(3, 4, dtype=torch.double)) == []


def test_views_read_their_own_batch_size() -> None:
    ann, shape = trap("foreign_batch")
    model = capture(ann)
    run_passes(model, live_inputs(ann, *shape))
    views = [n for n in model.graph.nodes if n.op == "call_method" and n.target == "reshape"]
    assert len(views) == 2
    for node in views:
        assert node.args[1].target == "size"
        assert node.args[1].args == (node.args[0], 0)


@pytest.mark.parametrize("example", [None, torch.randn(2, 3, 4, 4)])
def test_flattening_with_the_batch_size_of_the_image(example: Tensor | None) -> None:
    ann = Net(lambda n, x: n.fc(F.relu(n.conv(x)).view(x.size(0), -1)), conv=nn.Conv2d(3, 2, 3), fc=nn.Linear(8, 2))
    model = capture(ann)
    run_passes(model, example)
    assert [n.op for n in model.graph.nodes] == ["placeholder", *["call_module"] * 4, "output"]


def test_norm_on_batch_statistics_is_left_and_found() -> None:
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    model = capture(ann)
    x = torch.randn(4, 3, 6, 6)
    run_passes(model, x)
    assert [p.path for p in batch_problems(model, x)] == ["1"]
