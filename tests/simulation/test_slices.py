"""A batch beyond the cache runs in slices, and nothing but time tells."""

from __future__ import annotations

import pytest
import torch

import conversion_ext as cx
from conversion_ext.errors import StateError
from conversion_ext.simulation import engine, run
from conversion_ext.simulation.slices import Joined, slices
from tests.live import live

pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data")


def converted(name, samples=7):
    ann, x = live(name, samples=samples)
    return cx.convert(ann, x, recipe=cx.Recipe(cx.Percentile(99.0)), progress=False), x


@pytest.mark.parametrize("name", ["residual", "inception", "gated"])
def test_slices_give_what_the_whole_batch_gives_and_leave_its_state(name, monkeypatch):
    snn, x = converted(name)
    whole = cx.simulate(snn, x, 5, record=("spikes",))
    further = cx.simulate(snn, x, 3, reset=False)
    monkeypatch.setattr(engine, "CACHE", 1)
    parts = []
    original = run.slices
    monkeypatch.setattr(run, "slices", lambda *args: parts.append(original(*args)) or parts[-1])
    sliced = cx.simulate(snn, x, 5, record=("spikes",))
    assert [len(part[0]) for part in parts[0]] == [1] * 7
    torch.testing.assert_close(sliced.outputs, whole.outputs, rtol=1e-9, atol=1e-9)
    for key, rate in whole.firing_rate.items():
        assert torch.equal(sliced.firing_rate[key], rate)
        assert torch.equal(sliced.spikes[key], whole.spikes[key])
        assert torch.equal(sliced.recorded["spikes"][key], whole.recorded["spikes"][key])
    torch.testing.assert_close(cx.simulate(snn, x, 3, reset=False).outputs, further.outputs, rtol=1e-9, atol=1e-9)
    with pytest.raises(StateError):
        cx.simulate(snn, x[:3], 1, reset=False)


def test_sizes_differ_by_one_and_what_has_no_samples_goes_into_every_slice():
    x = torch.arange(7)
    found = slices((x, "word"), 3)
    assert [part[0].tolist() for part in found] == [[0, 1, 2], [3, 4], [5, 6]]
    assert {part[1] for part in found} == {"word"}


def test_inputs_of_unequal_numbers_of_samples_stay_whole():
    inputs = (torch.arange(7), torch.arange(3))
    (only,) = slices(inputs, 2)
    assert only is inputs


def test_what_slices_leave_lies_where_the_whole_batch_keeps_it():
    whole, x = Joined(5), torch.arange(20.0).reshape(10, 2)  # two rows for each sample
    for n, part in zip((2, 3), x.split((4, 6)), strict=True):
        whole.begin(n)
        made = whole.room("v", part, torch.float64).copy_(part)
        again = whole.room("v", part, torch.float64).fill_(-1)  # begun anew while the first is still held
        whole.add({"made": made, "copied": part, "again": again, "none": None}, 0)
        whole.add(part[None], 1)
    found = whole.values(0)
    assert torch.equal(found["made"], x.double())
    assert found["made"].untyped_storage().data_ptr() == made.untyped_storage().data_ptr()
    assert torch.equal(found["copied"], x)
    assert torch.equal(found["again"], torch.full_like(found["made"], -1))
    assert found["none"] is None
    assert torch.equal(whole.values(1), x[None])


def test_calls_hold_about_as_many_steps():
    snn, _ = converted("residual", 2)
    runner = engine.Engine(snn)
    runner.rows = 12
    assert list(runner.chunks(2, runner.schedule(8), None)) == [4, 4]
    assert list(runner.chunks(2, runner.schedule(8), 3)) == [3, 3, 2]
    assert list(runner.chunks(2, runner.schedule(5), None)) == [5]
