"""cx.tune picks the best of what it shows, on samples that did not calibrate."""

from __future__ import annotations

import pytest
import torch

import conversion_ext as cx
from tests import zoo
from tests.live import live_inputs, make_live


def case(samples=64):
    torch.manual_seed(0)
    ann = make_live(zoo.Residual(), *zoo.IMAGE)
    x = live_inputs(ann, *zoo.IMAGE, samples=samples)
    return ann, x


@pytest.mark.parametrize("family", ["binary", "signed", "multi-level"])
def test_it_returns_the_best_candidate_of_its_family(family):
    ann, x = case()
    before = {k: v.clone() for k, v in ann.state_dict().items()}
    found = cx.tune(ann, list(x.split(20)), 4, family=family, backend="reference", progress=False)
    scores = [c.score for c in found.candidates]
    assert len(scores) == 12 * 3
    assert scores == sorted(scores, reverse=True)
    assert found.measure == "agreement"
    assert found.samples == 16
    assert found.recipe == found.candidates[0].recipe == found.snn.conversion.recipe
    assert str(found.recipe.family) == family
    assert len(str(found).splitlines()) == 38
    assert all(torch.equal(before[k], v) for k, v in ann.state_dict().items())


def test_the_score_is_that_of_samples_that_did_not_calibrate():
    """Computed again by hand for the best candidate, with labels that only the held-out samples can get right."""
    ann, x = case()
    y = ann(x).argmax(1)
    judge = torch.arange(64) % 4 == 3
    y[~judge] = 0  # labels of the samples that calibrate must not matter
    found = cx.tune(ann, (x, y), 4, backend="reference", progress=False)
    best = found.candidates[0]
    snn = cx.convert(ann, x[~judge], recipe=best.recipe, T=4, backend="reference", progress=False)
    accuracy = (cx.simulate(snn, x[judge], 4).output.argmax(1) == y[judge]).float().mean()
    assert found.measure == "accuracy"
    assert best.score == pytest.approx(float(accuracy))
    assert best.score > found.candidates[-1].score


def test_a_budget_ends_the_search_after_the_first_recipe():
    ann, x = case()
    found = cx.tune(ann, x, 2, budget=1e-9, backend="reference", progress=False)
    assert {c.recipe.normalizer for c in found.candidates} == {cx.Percentile(99.9)}
    assert {c.recipe.tuners for c in found.candidates} == {()}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"family": "graded"}, "family"),
        ({"budget": 0}, "budget"),
        ({"T": 0}, "T=0"),
        ({"x": torch.rand(3, 3, 12, 12)}, "8"),
    ],
)
def test_bad_input_is_named(options, said):
    ann, x = case(8)
    options = {"T": 2, "x": x, **options}
    x, T = options.pop("x"), options.pop("T")
    with pytest.raises(ValueError, match=said):
        cx.tune(ann, x, T, backend="reference", progress=False, **options)
