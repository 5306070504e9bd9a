"""Sequences of frames in every verb: the layout is found or said, and the numbers are those of simulate(x_seq=)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import conversion_ext as cx
from conversion_ext.data.sequences import FramesAsSamples, time_axis
from conversion_ext.errors import CalibrationError

pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data")
T, N = 5, 12
FRAMES = torch.randint(3, (N, T, 2, 6, 6), generator=torch.Generator().manual_seed(0))  # events, counted
X_SEQ = FRAMES.transpose(0, 1).float()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)).eval()


ANN = network()
with torch.no_grad():
    Y = ANN(X_SEQ.flatten(0, 1)).unflatten(0, (T, N)).mean(0).argmax(1)


def converted(data: Any = None, **options: Any) -> Any:
    options = {"sequence": "batch_first", "backend": "reference", "progress": False} | options
    return cx.convert(ANN, [(FRAMES, Y)] if data is None else data, **options)


def loader(**options: Any) -> DataLoader[Any]:
    """Batches (frames [N, T, C, H, W], targets), counts of events as integers, as tonic's datasets give them."""
    return DataLoader(TensorDataset(FRAMES, Y), 4, **options)


def test_thresholds_come_from_all_frames_in_either_layout():
    expected = cx.convert(ANN, X_SEQ.flatten(0, 1), backend="reference", progress=False)
    for snn in (
        converted(),
        converted(loader()),
        converted(X_SEQ, sequence=True),
        converted([X_SEQ], sequence="time_first"),
    ):
        for key, threshold in expected.conversion.thresholds.items():
            assert torch.equal(snn.conversion.thresholds[key], threshold)
    assert converted().conversion.samples == T * N


def test_verbs_read_frames_as_the_conversion_did():
    snn = converted()
    outputs = cx.simulate(snn, x_seq=X_SEQ).outputs
    expected = (outputs.argmax(2) == Y).double().mean(1)
    found = cx.evaluate(snn, loader(), ann=ANN, progress=False)
    assert found.at == (1, 2, 3, 4, 5)
    assert torch.equal(found.score, expected)
    assert found.ann_score == 1
    assert torch.equal(cx.evaluate(snn, [(X_SEQ, Y)], sequence=True, progress=False).score, expected)
    assert torch.equal(cx.evaluate(snn, (FRAMES, Y), 3, progress=False).score, expected[:3])
    with pytest.raises(ValueError, match="T=6, but x_seq holds 5 steps"):
        cx.evaluate(snn, loader(), 6, progress=False)


def test_a_network_of_images_finds_sequences_by_their_shape():
    snn = cx.convert(ANN, X_SEQ.flatten(0, 1), backend="reference", progress=False)
    expected = (cx.simulate(snn, x_seq=X_SEQ).outputs.argmax(2) == Y).double().mean(1)
    for data in (loader(), [(X_SEQ, Y)], [(FRAMES, Y)]):
        assert torch.equal(cx.evaluate(snn, data, progress=False).score, expected)
    with pytest.raises(CalibrationError, match=r"is it \[T, N, ...\] or \[N, T, ...\]\? Pass sequence="):
        cx.synops(snn, X_SEQ, T)
    square = torch.rand(N, N, 2, 6, 6)
    with pytest.raises(CalibrationError, match=r"Pass sequence="):
        cx.evaluate(snn, [(square, Y)], progress=False)


def test_analyses_take_frames():
    snn = converted(T=T)
    mean = X_SEQ.mean(0)
    twins = [float((cx.twin(snn, t)(mean).argmax(1) == Y).double().mean()) for t in (1, 8)]
    assert cx.forecast(snn, loader(), (1, 8), progress=False).score.tolist() == twins
    count = cx.synops(snn, loader())
    run = cx.simulate(snn, x_seq=X_SEQ)
    assert count.T == T
    assert sum(count.spikes.values()) == pytest.approx(float(run.spikes_per_sample.mean()))
    first = count.layers[0]
    assert first.analog_macs == pytest.approx(
        float(nn.functional.conv2d((X_SEQ.flatten(0, 1) != 0).double(), torch.ones(8, 2, 3, 3).double()).sum()) / N
    )
    errors = cx.analysis.decompose(snn, loader(), T, ann=ANN)
    frames = cx.analysis.decompose(snn, X_SEQ.flatten(0, 1), T, ann=ANN, sequence=False)
    assert errors.sites[0].total_error == pytest.approx(frames.sites[0].total_error, rel=1e-6)


def test_tuning_and_training_take_frames():
    found = cx.tune(ANN, loader(), 4, sequence="batch_first", backend="reference", budget=1e-6, progress=False)
    assert found.measure == "accuracy"
    assert found.samples == 3
    assert torch.equal(
        cx.evaluate(found.snn, loader(), progress=False).score[-1:],
        cx.evaluate(found.snn, [(FRAMES, Y)], progress=False).score[-1:],
    )
    with pytest.warns(UserWarning, match="read as sequences of them: sequence='batch_first'"):
        seen = cx.tune(ANN, loader(), 4, backend="reference", budget=1e-6, progress=False)
    assert seen.snn.conversion.thresholds.keys() == found.snn.conversion.thresholds.keys()
    assert seen.candidates[0].score == found.candidates[0].score
    snn = converted()
    result = cx.finetune(snn, loader(), T=T, epochs=2, teacher=ANN, validation=loader(), progress=False)
    assert result.history[0].score == float(cx.evaluate(snn, loader(), progress=False).score[-1])
    shown: list[Tensor] = []
    options: dict[str, Any] = {"training": cx.training.Training(rate=1e-9), "validation": loader(), "progress": False}
    cx.finetune(snn, [(FRAMES, Y)], T=T, loss=lambda o, y: shown.append(o.detach()) or o.sum(), **options)
    torch.testing.assert_close(shown[0].mean(0), cx.simulate(snn, x_seq=X_SEQ).output, rtol=1e-4, atol=1e-5)


def test_layouts_are_checked():
    for bad in ("TN", 1, "first"):
        with pytest.raises(ValueError, match="sequence="):
            converted(sequence=bad)
    with pytest.raises(CalibrationError, match=r"5 dimensions, \[T, N, ...\]"):
        time_axis(torch.rand(3, 4), 4, None, True, "x")
    with pytest.raises(CalibrationError, match="asks for frames"):
        list(FramesAsSamples([torch.rand(3)], True, None, ANN))
    assert time_axis(torch.rand(3, 4), 2, None, None, "x") is None


def test_the_recipe_for_frames_is_one_for_any_number_of_steps():
    for steps in (None, T):
        snn = converted(recipe="frames", T=steps)
        assert snn.conversion.recipe == cx.Recipe(cx.Percentile(99.9), cx.IF(v_init=0.5))
    outputs = cx.simulate(snn, x_seq=X_SEQ.repeat(200, 1, 1, 1, 1), at=(1000,)).output
    with torch.no_grad():
        mean = ANN(X_SEQ.mean(0))  # neurons add up what the frames bring
    assert (outputs - mean).norm() < 0.02 * mean.norm()


def test_frames_that_nobody_named_are_read_as_frames_and_it_is_said() -> None:
    """Where the targets tell which axis is the batch; where they do not, one sentence asks."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    frames, target = torch.rand(5, 4, 2, 6, 6), torch.tensor([0, 1, 2, 0])
    loader = [(frames, target)]
    named = cx.convert(ann, loader, sequence=True, backend="reference", progress=False)
    with pytest.warns(UserWarning, match="sequence='time_first'"):
        told = cx.convert(ann, loader, backend="reference", progress=False)
    mine, theirs = (list(each.conversion.thresholds.values()) for each in (told, named))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    first, second = (cx.evaluate(each, loader, 5, progress=False).accuracy for each in (told, named))
    assert torch.equal(first, second)
    with pytest.raises(cx.CalibrationError, match="sequence='time_first' or sequence='batch_first'"):
        cx.convert(ann, frames, backend="reference", progress=False)


class _Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 5), nn.Linear(3, 5)

    def forward(self, x: torch.Tensor, *, other: torch.Tensor, twice: bool = False) -> torch.Tensor:
        return torch.relu(self.first(x)) * (2 if twice else 1) + torch.relu(self.second(other))


def test_inputs_may_be_passed_by_keyword() -> None:
    ann, x, other = _Keywords().double().eval(), torch.rand(8, 4).double(), torch.rand(8, 3).double()
    recipe = cx.Recipe(cx.Maximum(granularity=cx.PerChannel()))
    snn = cx.convert(ann, [(x, other)], forward=lambda model, batch: model(batch[0], other=batch[1], twice=True),
                     recipe=recipe, backend="reference", progress=False)  # fmt: skip
    target = ann(x, other=other, twice=True).detach()
    assert float((cx.simulate(snn, (x, other), 512).output - target).abs().max()) < 0.01 * float(target.max())
    found = cx.evaluate(snn, [(x, other, target)], 64, ann=ann, progress=False)
    assert float(found.ann_score) < 1e-9
