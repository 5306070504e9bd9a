"""A batch beyond the cache runs in slices, and nothing but time tells."""

from __future__ import annotations

import pytest
import torch

import conversion_ext as cx
from conversion_ext.errors import StateError
from conversion_ext.simulation import engine, run
from conversion_ext.simulation.slices import slices
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
