"""Calibration and evaluation by several real processes, and by parts in one: the same to the last bit."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.calibration.calibration import Calibration
from conversion_ext.conversion.observation import calibrate
from conversion_ext.data import distributed
from conversion_ext.tuners.exact_sums import exact_sum, exact_sum_bounded
from conversion_ext.tuners.tensor_store import TensorStore
from tests import processes
from tests.processes import NETWORKS, NORMALIZERS, PARTS, TRAININGS, data

ROOT = Path(__file__).parents[2]


def together(number: int, job: str, folder: Path) -> list[Any]:
    """Run a job in so many processes; return what each left, None where it died."""
    outputs = [folder / f"{job}{number}-{rank}.pt" for rank in range(number)]
    rendezvous = folder / f"{job}{number}"
    commands = [
        [sys.executable, "-m", "tests.processes", str(rendezvous), str(rank), str(number), job, str(output)]
        for rank, output in enumerate(outputs)
    ]
    running = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode in (0, 9), errors
    return [torch.load(output, weights_only=False) if output.exists() else None for output in outputs]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    torch.manual_seed(0)
    return processes.both(0, 1)


@pytest.fixture(scope="module", params=[2, 3])
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two or three processes finds, and what it tunes to: one start for both tests."""
    return together(request.param, "both", tmp_path_factory.mktemp("several"))


def test_several_processes_find_what_one_finds(several, alone):
    alone = alone["results"]
    for found in (each["results"] for each in several):
        for network in NETWORKS:
            for name in NORMALIZERS:
                thresholds = alone[f"{network} {name}"]
                assert found[f"{network} {name} samples"] == 25
                assert found[f"{network} {name}"].keys() == thresholds.keys()
                for key, threshold in thresholds.items():
                    assert torch.equal(found[f"{network} {name}"][key], threshold), f"{network} {name} {key}"
            ours, theirs = alone[f"{network} evaluation"], found[f"{network} evaluation"]
            assert ours.samples == theirs.samples == 25
            for name in ("at", "ann_accuracy", "total_steps", "latency_steps"):
                assert getattr(ours, name) == getattr(theirs, name)
            assert torch.equal(ours.accuracy, theirs.accuracy)
            assert torch.equal(ours.agreement, theirs.agreement)
            assert list(ours.firing_rate) == list(theirs.firing_rate)
            assert list(ours.firing_rate.values()) == pytest.approx(list(theirs.firing_rate.values()), rel=1e-12)
            ours, theirs = alone[f"{network} forecast"], found[f"{network} forecast"]
            assert ours.samples == theirs.samples == 25
            assert torch.equal(ours.accuracy, theirs.accuracy)


def test_several_processes_tune_to_what_one_finds(several, alone):
    """Weights, biases, gains, potentials and thresholds; the batches are also in another order."""
    for found in (each["tuned"] for each in several):
        assert found.keys() == alone["tuned"].keys()
        for key, value in found.items():
            expected = alone["tuned"][key]
            same = torch.equal(expected, value) if isinstance(value, torch.Tensor) else expected == value
            assert same, f"{len(several)} processes, {key}"


def test_sums_are_the_same_in_any_order():
    """And near fsum, which rounds once; magnitudes over eighteen octaves, among which adding floats depends on order.

    Forty terms leave 53 - 6 bits to each, counted from the power of two above the largest.
    """
    generator = torch.Generator().manual_seed(0)
    terms = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    terms[:, 0] *= 1e-30  # beside numbers of another size
    terms = terms * 2.0 ** torch.randint(-9, 9, (40, 3), generator=generator)
    sums = []
    for order in (range(40), range(39, -1, -1), torch.randperm(40, generator=generator).tolist()):
        with TensorStore(budget=200) as store:
            sums.append(exact_sum(((terms[i], torch.tensor(1)) for i in order), store, torch.device("cpu")))
            assert len(store) == 0
        assert torch.equal(sums[0][0], sums[-1][0])
        assert sums[-1][1] == 40
    for found, column in zip(sums[0][0].tolist(), terms.T.tolist(), strict=True):
        assert abs(found - math.fsum(column)) <= 40 * 2**-47 * max(map(abs, column))


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ([torch.ones(2), torch.tensor([1.0, torch.nan])], "NaN or infinite"),
        ([torch.ones(2), torch.ones(3)], "one size"),
    ],
)
def test_sums_that_cannot_be_are_refused(terms, said):
    with TensorStore() as store, pytest.raises(cx.CalibrationError, match=said):
        exact_sum(((term,) for term in terms), store, torch.device("cpu"))


def test_sums_within_a_bound_round_nothing_that_fits():
    """Integers of 45 bits: exact, whatever their order; the bound is far above them."""
    terms = torch.randint(-(2**45), 2**45, (20, 4), generator=torch.Generator().manual_seed(0)).double()
    bound = torch.tensor(2.0**47, dtype=torch.float64)
    for order in (terms, terms.flip(0)):
        assert torch.equal(exact_sum_bounded(order, (4,), bound, len(terms)), terms.long().sum(0).double())


def test_several_processes_train_what_one_trains(tmp_path, monkeypatch):
    """Two with half of every batch each: the mean loss of the whole, its gradient, and the same network in both."""
    pytest.importorskip("accelerate")
    monkeypatch.setenv("CHECKPOINTS", str(tmp_path))
    (alone,), both = together(1, "trained", tmp_path), together(2, "trained", tmp_path)
    for name in TRAININGS:
        history, best, network = agreed(both, name)
        assert torch.load(tmp_path / f"{name} 2.pt", weights_only=True)["number"] == 2
        if name != "normalized":  # BatchNorm sees the batch of its own process
            expected, chosen, whole = alone[name]
            assert best == chosen
            assert [e.accuracy for e in history] == [e.accuracy for e in expected]
            assert [e.loss for e in history[1:]] == pytest.approx([e.loss for e in expected[1:]], rel=1e-5)
            for key, value in network.items():
                torch.testing.assert_close(value, whole[key], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_leaves_weights_and_membranes_as_they_were(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.setenv("CHECKPOINTS", str(tmp_path))
    both = together(2, "narrow", tmp_path)
    for backend in available():
        _, _, network = agreed(both, backend)
        assert {value.dtype for value in network.values()} == {torch.float32}
        spikes, membranes = (set(types) for types in zip(*both[0][f"{backend} types"], strict=True))
        assert membranes == {torch.float32}
        assert torch.bfloat16 in spikes


def agreed(both: list[Any], name: str) -> Any:
    """Return what a training made, the same in both processes; its loss fell."""
    (history, best, network), (other, same, twin) = (found[name] for found in both)
    assert [(e.loss, e.accuracy) for e in history[1:]] == [(e.loss, e.accuracy) for e in other[1:]]
    assert (history[0].accuracy, best) == (other[0].accuracy, same)
    assert history[2].loss < history[1].loss < math.inf
    for key, value in network.items():
        assert torch.equal(value, twin[key]), f"{name} {key}"
    return history, best, network


def test_tuning_ends_where_a_process_dies(tmp_path):
    said, dead = together(2, "death", tmp_path)
    assert dead is None
    assert said.startswith("ConversionError: Process 0 of 2 waited in vain for the others")


def test_what_goes_wrong_in_one_process_is_said_in_all_that_live(tmp_path):
    """A method that needs all data in one process; a NaN in one part; a process that dies."""
    started = time.monotonic()
    survivor, dead = together(2, "troubles", tmp_path)
    assert dead is None
    order, nan, death = survivor
    assert "depends on the order of its batches" in order
    assert nan.startswith("ConversionError: Process 1 of 2 failed: Calibration batch 1 holds values that are NaN")
    assert death.startswith("ConversionError: Process 0 of 2 waited in vain for the others")
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("name", [name for name in NORMALIZERS if name != "gaussian_mse"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_calibration_is_saved_resumed_and_merged(network, name, alone, tmp_path):
    """Parts of the data, one of them saved and loaded in between, in an order of their own."""
    ann, batches = data(network)
    recipe = cx.Recipe(NORMALIZERS[name])
    parts = [calibrate(ann, [batches[i] for i in part], recipe=recipe, progress=False) for part in PARTS[2]]
    torch.save(parts[1].state_dict(), tmp_path / "calibration.pt")
    whole = Calibration.from_state_dict(torch.load(tmp_path / "calibration.pt", weights_only=True))
    whole.merge(parts[0])
    snn = cx.convert(ann, whole, recipe=recipe, T=8, backend="reference", progress=False)
    assert snn.conversion.samples == 25
    for key, threshold in alone["results"][f"{network} {name}"].items():
        assert torch.equal(snn.conversion.thresholds[key], threshold), key


def test_statistics_of_another_kind_merge_too_and_are_not_saved(alone):
    ann, batches = data("residual")
    recipe = cx.Recipe(NORMALIZERS["gaussian_mse"])
    whole, rest = (calibrate(ann, [batches[i] for i in part], recipe=recipe, progress=False) for part in PARTS[2])
    whole.merge(rest)
    snn = cx.convert(ann, whole, recipe=recipe, T=8, backend="reference", progress=False)
    for key, threshold in alone["results"]["residual gaussian_mse"].items():
        assert torch.equal(snn.conversion.thresholds[key], threshold), key
    with pytest.raises(ValueError, match="Currents cannot be saved"):
        whole.state_dict()


def test_a_calibration_that_does_not_fit_is_refused():
    ann, batches = data("residual")
    other, _ = data("gated")
    per_layer = calibrate(ann, batches, recipe=cx.Recipe(cx.Maximum()), progress=False)
    with pytest.raises(cx.CalibrationError, match="calibrate with the same model and recipe"):
        cx.convert(ann, per_layer, backend="reference", progress=False)
    with pytest.raises(cx.CalibrationError, match="calibrate with the same model and recipe"):
        cx.convert(other, per_layer, recipe=cx.Recipe(cx.Maximum()), backend="reference", progress=False)
    with pytest.raises(ValueError, match="networks with other sites"):
        per_layer.merge(calibrate(other, batches, progress=False))
    with pytest.raises(ValueError, match="pass batches"):
        cx.convert(ann, per_layer, recipe=cx.Recipe(tuners=(cx.BiasCorrection(),)), T=4, backend="reference")


def test_nccl_by_itself_adds_what_lies_on_the_cpu_too(monkeypatch):
    moved = list[torch.Tensor]()

    def double(value, operation):
        assert any(value is other for other in moved)
        value.mul_(2)

    monkeypatch.setattr(distributed, "processes", lambda: 2)
    monkeypatch.setattr(distributed.distributed, "get_backend", lambda: "nccl")
    monkeypatch.setattr(distributed.distributed, "all_reduce", double)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: moved.append(self.clone()) or moved[-1])
    value = torch.arange(3.0)
    assert distributed.added(value) is value
    assert value.tolist() == [0, 2, 4]
