"""The walk sees what the finished network sends, in memory that a budget bounds."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

import conversion_ext as cx
from conversion_ext.neurons import WeightedIF
from conversion_ext.tuners import Tuner, tensor_store, walk
from conversion_ext.tuners.tensor_store import TensorStore
from tests import zoo
from tests.contract.test_tuners import activations
from tests.live import live, make_live


@dataclass(frozen=True, kw_only=True)
class Notes(Tuner):
    """Changes nothing and keeps what it was shown."""

    rates: dict = field(default_factory=dict)
    targets: dict = field(default_factory=dict)
    layers: dict = field(default_factory=dict)

    def tune_site(self, stop):
        self.rates[stop.site.key] = torch.cat([stop.emitted(part).mean(0) for part in stop.parts])
        self.targets[stop.site.key] = torch.cat([stop.target(part) for part in stop.parts])

    def tune_synapse(self, stop):
        for part in stop.parts:
            now = stop.module(stop.mean_input(part)) + stop.other_operands(part)
            self.layers.setdefault(str(stop.node.target), []).append((now, stop.target(part)))


def noted(name, T=4, backend="reference"):
    ann, x = live(name, samples=12)
    notes = Notes()
    tuners = (notes, cx.BiasCorrection()) if name != "gated" else (notes,)
    recipe = cx.Recipe(cx.Percentile(99.0), tuners=tuners)
    return ann, x, notes, cx.convert(ann, list(x.split(5)), recipe=recipe, T=T, backend=backend, progress=False)


@pytest.mark.parametrize("name", zoo.SMALL)
def test_it_shows_what_the_ann_computes(name):
    ann, x, notes, snn = noted(name)
    wanted = activations(snn, ann, x)
    assert set(wanted) <= set(notes.targets)
    for key, value in wanted.items():
        torch.testing.assert_close(notes.targets[key], value)


@pytest.mark.parametrize("T", [5, 30, 45])
def test_it_shows_what_a_network_sends_in_spikes_of_any_weight(T):
    torch.manual_seed(0)
    layers = (module for _ in range(2) for module in (torch.nn.Linear(6, 6), torch.nn.ReLU()))
    ann = torch.nn.Sequential(*layers, torch.nn.Linear(6, 3)).double()
    notes, x = Notes(), torch.rand(12, 6, dtype=torch.float64)
    recipe = cx.Recipe(cx.Maximum(), WeightedIF(), tuners=(notes,), family="weighted")
    snn = cx.convert(ann, x, recipe=recipe, T=T, backend="reference", progress=False)
    *_, last = notes.layers.values()  # its input comes from sites that were shown the spikes of others
    torch.testing.assert_close(torch.cat([now for now, _ in last]), cx.simulate(snn, x, T).output)


@pytest.mark.parametrize("name", ["residual", "dense", "shuffle", "gated", "tied"])
def test_it_shows_what_an_untuned_network_sends(name):
    _, x, notes, _ = noted(name)
    build, shape = zoo.SMALL[name]
    torch.manual_seed(0)
    ann = make_live(build(), *shape).double()
    plain = cx.convert(
        ann, list(x.split(5)), recipe=cx.Recipe(cx.Percentile(99.0), tuners=(Notes(),)), T=4, backend="reference",
        progress=False,
    )  # fmt: skip
    seen = plain.conversion.recipe.tuners[0].rates
    run = cx.simulate(plain, x, 4, record=("spikes",))
    for key, rate in seen.items():
        threshold = plain.sites()[key].view(rate.dim())
        torch.testing.assert_close(run.recorded["spikes"][key].mean(0) * threshold, rate)


@pytest.mark.parametrize("name", ["residual", "bottleneck", "dense"])
def test_a_layer_s_goal_is_the_sum_it_goes_into(name):
    """With thresholds that clip nothing and many steps the spiking sums come close to the ANN's."""
    _, _, notes, _ = noted(name, T=256)
    assert notes.layers
    for pairs in notes.layers.values():
        now, wanted = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        assert (now - wanted).norm() < 0.25 * wanted.norm()


def test_a_small_budget_gives_the_same_network_from_files(monkeypatch):
    _, x, _, snn = noted("residual")
    monkeypatch.setattr(walk, "TensorStore", lambda: TensorStore(budget=1000))
    saved = []
    monkeypatch.setattr(
        tensor_store.torch, "save", lambda value, path, save=torch.save: (saved.append(path), save(value, path))
    )
    _, _, _, again = noted("residual")
    assert len(saved) > 10
    assert not any(path.exists() for path in saved)
    assert torch.equal(cx.simulate(snn, x, 4).outputs, cx.simulate(again, x, 4).outputs)
