"""Conversions within a budget read fewer batches and say so; the bar ends where the work ends."""

from __future__ import annotations

import re

import pytest
import torch

import conversion_ext as cx
from conversion_ext.conversion import budget, pipeline
from conversion_ext.conversion.budget import FirstSamples
from conversion_ext.conversion.observation import prepared_for
from conversion_ext.data import progress
from conversion_ext.network.record import Options
from tests.live import live

pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data")


def network():
    return live("residual", samples=24, dtype=torch.float32)


def convert(budget_s=None, **options):
    ann, x = network()
    return cx.convert(ann, list(x.split(6)), T=4, backend="reference", progress=False, budget_s=budget_s, **options)


def test_a_budget_that_suffices_changes_nothing():
    _, x = network()
    plain, within = convert(), convert(1e6)
    assert within.conversion.samples == 24
    assert not any("budget_s" in note for note in within.conversion.notes)
    assert torch.equal(cx.simulate(plain, x, 4).outputs, cx.simulate(within, x, 4).outputs)


def test_a_budget_that_does_not_suffice_reads_the_first_batches_and_says_so():
    ann, x = network()
    within = convert(1e-9)
    assert within.conversion.samples == 6
    assert any(note.startswith("budget_s=1e-09: 6 samples") for note in within.conversion.notes)
    first = cx.convert(ann, x[:6], T=4, backend="reference", progress=False)
    for key, threshold in first.conversion.thresholds.items():
        assert torch.equal(within.conversion.thresholds[key], threshold)


@pytest.mark.parametrize("labelled", [False, True])
def test_a_tensor_is_cut_as_batches_are(labelled):
    ann, x = live("residual", samples=40, dtype=torch.float32)
    data = (x, torch.arange(40)) if labelled else x
    within = cx.convert(ann, data, T=4, backend="reference", progress=False, budget_s=1e-9)
    assert within.conversion.samples == budget.LEAST
    assert any(note.startswith("budget_s=1e-09: 32 samples") for note in within.conversion.notes)
    first = cx.convert(ann, x[:32], T=4, backend="reference", progress=False)
    assert torch.equal(cx.simulate(first, x, 4).outputs, cx.simulate(within, x, 4).outputs)
    assert cx.convert(ann, data, T=4, backend="reference", progress=False, budget_s=1e6).conversion.samples == 40


@pytest.mark.parametrize(("samples", "read", "cut"), [(1, [6], True), (7, [6, 6], True), (12, [6, 6], False)])
def test_batches_are_read_until_there_are_samples_enough(samples, read, cut):
    data = FirstSamples([torch.rand(6, 2), torch.rand(6, 2), *([torch.rand(6, 2)] if cut else [])], None, samples)
    assert [len(batch) for batch in data] == read
    assert data.cut == cut


def test_regressions_look_at_so_many_rows_and_no_more():
    ann, x = network()
    plan = budget.Plan(prepared_for(cx.Recipe(), ann, (x,), Options()).model, 4, True)
    one, few, many = (plan.of_samples(n) for n in (1, 10, 10**6))
    assert few == pytest.approx(10 * one)
    assert many < 0.9e6 * one
    for passes in (few, 3.7 * few, many):
        n = plan.samples(passes)
        assert plan.of_samples(n) <= passes < plan.of_samples(n + 1)
    assert plan.samples(0.1 * one) == 1
    untuned = budget.Plan(prepared_for(cx.Recipe(), ann, (x,), Options()).model, None, False)
    assert untuned.samples(100 * budget.OBSERVING) == 100


@pytest.mark.parametrize("wrong", [0, -1.0, True, "fast", float("inf"), float("nan")])
def test_what_is_no_budget_is_refused_before_work(wrong):
    with pytest.raises(ValueError, match="number > 0"):
        convert(wrong)


@pytest.mark.parametrize("recipe", ["default", "rueckauer2017"])
def test_one_bar_reaches_its_end(recipe, monkeypatch):
    """And by steps none of which is most of the work, so that the time that remains is told early."""
    bars = []

    class Noted(budget.Progress):
        def __init__(self, shown, passes):
            super().__init__(shown, passes)
            self.steps = []
            bars.append(self)

        def add(self, passes):
            self.steps.append(passes)
            super().add(passes)

    monkeypatch.setattr(pipeline, "Progress", Noted)
    monkeypatch.setattr(progress, "tqdm", Bar)
    convert(recipe=recipe)
    (bar,) = bars
    assert bar.bar.n == pytest.approx(bar.bar.total)
    assert max(bar.steps) < 0.5 * sum(bar.steps)


class Bar:
    """Counts as tqdm does, shown or not."""

    def __init__(self, data, desc, total, disable, bar_format):
        self.total, self.n = total, 0.0

    def update(self, n):
        self.n += n

    def set_postfix_str(self, text, refresh):
        assert re.fullmatch(r"memory [\d,]+ MiB", text)

    def close(self):
        pass
