"""cx.tune picks the best of what it shows, within limits and in time, on samples that did not calibrate."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.analysis import search
from conversion_ext.analysis.candidates import Limits, trials
from conversion_ext.analysis.held_out import Data
from conversion_ext.network.depths import depths
from conversion_ext.neurons import SignedIF
from conversion_ext.recipes.default import corrections
from conversion_ext.tuners import BlockReconstruction
from conversion_ext.types import Family


def case(samples=64):
    """Return a small network of three sites in a chain, and inputs."""
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(),
        nn.Linear(8, 5),
    )  # fmt: skip
    for layer in ann[::2]:
        if hasattr(layer, "weight"):
            nn.init.kaiming_normal_(layer.weight)
    return ann.eval(), torch.randn(samples, 2, 6, 6)


def tune(ann, data, T=None, **options):
    return cx.tune(ann, data, T, **{"backend": "reference", "progress": False} | options)


@pytest.fixture
def few(monkeypatch):
    """One correction alone, that of the default recipes, for what does not depend on how many there are."""
    only = [(cx.MeanSquaredError(), corrections())]
    monkeypatch.setattr("conversion_ext.analysis.candidates._corrections", lambda: only)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Blocks in few steps: what is tried is the same."""
    monkeypatch.setattr("conversion_ext.analysis.candidates.BLOCKS", BlockReconstruction(steps=3))


@pytest.fixture(scope="module")
def searched():
    """The search in one family, over batches without labels, made once."""
    made = {}

    def of(family):
        if family not in made:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr("conversion_ext.analysis.candidates.BLOCKS", BlockReconstruction(steps=3))
                ann, x = case()
                made[family] = ann, x, tune(ann, list(x.split(20)), 4, family=family)
        return made[family]

    return of


@pytest.mark.parametrize("family", ["binary", "weighted", "signed", "multi-level"])
def test_it_returns_the_best_candidate_of_its_family(family, searched):
    ann, _, found = searched(family)
    before = case()[0].state_dict()
    scores = [c.score for c in found.candidates]
    assert len(scores) >= (36 if family != "weighted" else 2)
    assert scores == sorted(scores, reverse=True)
    assert found.measure == "agreement"
    assert found.samples == 16
    made = found.snn.conversion.recipe
    assert (
        found.recipe
        == found.candidates[0].recipe
        == replace(made, neuron=found.recipe.neuron, readout=found.recipe.readout)
    )
    assert type(made.neuron) is type(found.recipe.neuron)
    assert {str(c.recipe.family) for c in found.candidates} == {family}
    assert len(str(found).splitlines()) >= len(scores) + 3
    assert all(torch.equal(before[k], v) for k, v in ann.state_dict().items())


def test_candidates_of_every_kind_are_within_reach():
    tried = list(
        trials(tuple(Family(f) for f in ("binary", "weighted", "signed", "multi-level")), 4, Limits(neurons=9), 3)
    )
    recipes = [trial.recipe for trial in tried]
    assert {recipe.family for recipe in recipes} == {Family.BINARY, Family.WEIGHTED, Family.SIGNED, Family.MULTI_LEVEL}
    assert {recipe.neuron.ahead for recipe in recipes} == {0, 1, 2}
    assert sorted({str(recipe.copies) for recipe in recipes}) == ["1", "2", "3", "4"]
    assert any(isinstance(tuner, BlockReconstruction) for recipe in recipes for tuner in recipe.tuners)
    assert SignedIF(v_init=0.5, pairs=True) in {recipe.neuron for recipe in recipes}
    assert not any(trial.recipe.neuron.members > 1 for trial in trials((Family.BINARY,), 4, Limits(), 3))
    assert len({repr(trial) for trial in tried}) == len(tried)
    for name in ("default", "default-lookahead", "default-weighted", "default-signed", "default-multilevel"):
        assert cx.recipes.get(name) in recipes


def test_the_score_is_that_of_samples_that_did_not_calibrate():
    """Computed again by hand for the best candidate, with labels that only the held-out samples can get right."""
    ann, x = case()
    y = ann(x).argmax(1)
    judge = torch.arange(64) % 4 == 3
    y[~judge] = 0  # labels of the samples that calibrate must not matter
    found = tune(ann, (x, y), 4, family="binary")
    best = found.candidates[0]
    snn = cx.convert(ann, x[~judge], recipe=best.recipe, T=4, backend="reference", progress=False)
    run = cx.simulate(snn, x[judge], 4)
    accuracy = (run.output.argmax(1) == y[judge]).double().mean()
    assert found.measure == "accuracy"
    assert best.score == pytest.approx(float(accuracy))
    assert best.score > found.candidates[-1].score
    assert best.spikes == pytest.approx(float(run.spikes_per_sample.mean()))
    assert best.latency_steps == run.latency_steps
    assert best.neurons == sum(rate[0].numel() for rate in run.firing_rate.values())


def test_intervals_are_those_of_proportions_and_of_pairs(searched):
    """The jackknife of a mean is its standard error; of two candidates that of their difference, sample by sample."""
    ann, x, found = searched("signed")
    judge = torch.arange(64) % 4 == 3
    rights = []
    for c in (found.candidates[0], found.candidates[-1]):
        snn = cx.convert(ann, x[~judge], recipe=c.recipe, T=4, backend="reference", progress=False)
        rights.append((cx.simulate(snn, x[judge], 4).output.argmax(1) == ann(x[judge]).argmax(1)).double())
        assert c.interval == pytest.approx(1.96 * float(rights[-1].std()) / 4, abs=1e-9)
    last, lost = found.candidates[-1], rights[0] - rights[1]
    assert last.behind == pytest.approx(float(lost.mean()))
    assert last.behind_interval == pytest.approx(1.96 * float(lost.std()) / 4, abs=1e-9)
    assert found.candidates[0].behind == 0
    rivals = found.candidates[1:]
    equal = 1 + sum(c.behind <= c.behind_interval for c in rivals)
    middle = sorted(c.behind_interval for c in rivals)[len(rivals) // 2]
    said = f"{equal} of {len(found.candidates)} cannot be told from the best by {found.samples} samples"
    assert said in str(found)
    assert f"a difference being known to ± {found.metric.shown(middle)}" in str(found)


def test_latency_and_neurons_are_limits(few):
    """A chain of sites that look ahead takes T and its depth, and copies take neurons: what is returned fits."""
    ann, x = case()
    depth = max(depths(cx.convert(ann, x[:8], backend="reference", progress=False).body).values())
    found = tune(ann, x, latency=depth + 3, neurons=2.0, family=("binary", "weighted"))
    assert all(c.latency_steps <= depth + 3 for c in found.candidates)
    for ahead, steps in ((1, {4, 2}), (2, {2, 1})):  # of two sites in a chain the second waits
        assert {c.T for c in found.candidates if c.recipe.neuron.ahead == ahead} == steps
    assert {c.T for c in found.candidates if not c.recipe.neuron.ahead} == {depth + 3, (depth + 3) // 2}
    plain = min(c.neurons for c in found.candidates)
    best = found.candidates[0]
    assert best.allowed
    assert best.neurons <= 2 * plain
    assert any(c.neurons == 2 * plain and c.allowed for c in found.candidates)
    assert all(c.neurons <= 2 * plain for c in found.candidates)  # more copies cost no time
    pairs = [c for c in found.candidates if c.recipe.neuron.members == 2]
    assert pairs
    assert all(c.neurons == 2 * plain and c.recipe.family is Family.BINARY for c in pairs)
    by_site = [c for c in found.candidates if not isinstance(c.recipe.copies, int)]
    assert by_site
    assert all(plain < c.neurons <= 2 * plain for c in by_site)
    run = cx.simulate(found.snn, x[:4], found.T)
    assert run.latency_steps == best.latency_steps


def test_few_spikes_are_a_limit(few):
    ann, x = case()
    free = tune(ann, x, 8, family="multi-level")
    least = min(c.spikes for c in free.candidates)
    found = tune(ann, x, spikes=1.5 * least, family="binary")
    assert found.candidates[0].spikes <= 1.5 * least
    assert all(c.spikes <= 1.5 * least for c in found.candidates if c.allowed)
    with pytest.raises(ValueError, match="within the limits"):
        tune(ann, x, 8, spikes=1.0, family="signed")
    with pytest.raises(ValueError, match="No candidate .* latency=2"):
        tune(ann, x, latency=2, family="weighted")


def test_a_budget_is_kept_and_one_candidate_is_always_tried():
    ann, x = case()
    found = tune(ann, x, 2, budget=1e-9)
    assert {(c.recipe.normalizer, c.recipe.tuners) for c in found.candidates} == {(cx.Percentile(99.9), ())}
    assert found.skipped > 10
    assert not found.refitted
    assert "not have fitted" in str(found)
    assert found.snn.conversion.recipe == found.recipe
    for budget in (2.0, 5.0):
        start = time.monotonic()
        found = tune(ann, x, 4, budget=budget)
        assert time.monotonic() - start < 2 * budget + 3  # other processes may be running
        assert found.candidates


def test_without_time_left_the_network_is_that_of_three_quarters():
    ann, x = case()
    found = tune(ann, x, 2, budget=1e-9)
    judge = torch.arange(64) % 4 == 3
    expected = cx.convert(ann, x[~judge], recipe=found.recipe, T=2, backend="reference", progress=False)
    assert torch.equal(cx.simulate(found.snn, x, 2).outputs, cx.simulate(expected, x, 2).outputs)


def test_another_metric_decides(few):
    """Real outputs against real targets: the least error comes first."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.rand(64, 8)
    found = tune(ann, [(x, ann(x).detach())], 4, metric="rmse", family="binary")
    assert found.measure == "rmse"
    scores = [c.score for c in found.candidates]
    assert scores == sorted(scores)
    assert all(c.interval > 0 and c.behind >= 0 for c in found.candidates)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"family": "graded"}, "family"),
        ({"budget": 0}, "budget"),
        ({"T": 0}, "T=0"),
        ({"latency": 0}, "latency=0"),
        ({"neurons": -1}, "neurons"),
        ({"neurons": True}, "neurons=True"),
        ({"spikes": "many"}, "spikes='many'"),
        ({"budget": "3"}, "budget='3'"),
        ({"neurons": 2}, "No candidate has as few as 2 neurons, and a plain conversion has"),
        ({"latency": 1}, "latency=1 steps after T=2"),
        ({"T": None}, "pass T="),
        ({"x": torch.rand(3, 2, 6, 6)}, "8"),
    ],
)
def test_bad_input_is_named(options, said):
    ann, x = case(8)
    options = {"T": 2, "x": x, **options}
    x, T = options.pop("x"), options.pop("T")
    with pytest.raises(ValueError, match=said):
        tune(ann, x, T, **options)


def test_copies_go_where_the_error_is(monkeypatch):
    """With one site of large error and room for it alone, it gets the copies."""
    ann, x = case()
    snn = cx.convert(ann, x, T=4, backend="reference", progress=False)
    errors = cx.analysis.decompose(snn, x, 4, ann=ann)
    keys = [site.key for site in errors.sites]
    shifted = replace(errors, sites=tuple(
        replace(site, quantization_error=1.0 if site.key == keys[1] else 1e-3, unevenness_error=0.0)
        for site in errors.sites
    ))  # fmt: skip
    monkeypatch.setattr(search, "decompose", lambda *_, **__: shifted)
    data = Data(ann, x, None)
    looking = search.Search(ann, data, Limits(), None, {"backend": "reference", "progress": False}, 0.0, None)
    looking._depth()
    size = looking.sizes[keys[1]]
    looking.limits = Limits(neurons=sum(looking.sizes.values()) + 2 * size)
    assert looking._copies(snn, 4)[keys[1]] == 3
