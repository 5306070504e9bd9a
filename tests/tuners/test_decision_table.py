"""Decisions of weighted spikes against the best threshold found by trying all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.neurons import WeightedIF
from conversion_ext.tuners import decision_table
from conversion_ext.types import Steps
from tests.live import live_inputs, make_live

costs = decision_table._costs


def linear():
    torch.manual_seed(0)
    layers = (nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 4))
    return make_live(nn.Sequential(*layers), 6).double()


def convolutional():
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 4))
    return make_live(nn.Sequential(*layers), 2, 12, 12).double()


def converted(ann, x, neuron, *tuners):
    recipe = cx.Recipe(cx.MeanSquaredError(), neuron, tuners=tuners, family="weighted")
    T = len(neuron.weights)
    return cx.convert(ann, x, recipe=recipe, T=T, backend="reference", fold=False, progress=False)


def pair(weights=(8, 4, 2, 1), lookahead=1, samples=200):
    ann = linear()
    x = live_inputs(ann, 6, samples=samples)
    neuron = WeightedIF(weights=weights, lookahead=lookahead)
    return x, converted(ann, x, neuron), converted(ann, x, neuron, cx.tuners.DecisionTable())


def second(snn, x):
    """Return the second site, what it expects at each step [T, N, C] in its units, and what it sends."""
    T, site = snn.conversion.T, list(snn.sites().values())[1]
    inputs: list[torch.Tensor] = []
    handle = site.register_forward_pre_hook(lambda m, a: inputs.append(a[0]))
    spikes = cx.simulate(snn, x, T, record=("spikes",)).recorded["spikes"][site.key]
    handle.remove()
    cx.reset(snn)
    expected = site.clock.run(site.currents(inputs[0], Steps(T, constant=True))).cumsum(0) + 0.5
    return site, expected, spikes


def lost(remains, later):
    return float(((-remains).clamp_min(0).square() + (remains - later - 1).clamp_min(0).square()).sum())


def test_each_decision_is_the_best_of_all_thresholds_given_those_before_it():
    weights = (8, 4, 2, 1)
    x, _, tuned = pair(weights)
    site, expected, spikes = second(tuned, x)
    assert not site.decisions[2:].any()  # two steps before the end all input is known
    for c in range(3):
        sent = torch.zeros(len(x), dtype=x.dtype)
        for k in range(2):
            later = sum(weights[k + 1 :])
            margin = expected[k, :, c] - sent - (weights[k] + later + 1) / 2
            costs = [
                lost(expected[-1, :, c] - sent - weights[k] * (margin >= shift), later)
                for shift in torch.linspace(-1, 1, 241, dtype=torch.float64) * (weights[k] + later)
            ]
            chosen = lost(expected[-1, :, c] - sent - weights[k] * spikes[k, :, c], later)
            assert chosen <= min(costs) + 1e-9
            sent += weights[k] * spikes[k, :, c]


def test_less_is_lost_than_with_the_thresholds_of_the_neuron():
    x, plain, tuned = pair()
    errors = []
    for snn in (plain, tuned):
        _, expected, spikes = second(snn, x)
        sent = (spikes * torch.tensor([8.0, 4.0, 2.0, 1.0]).view(-1, 1, 1)).sum(0)
        errors.append(float((sent - (expected[-1] - 0.5).clamp(0, 15)).square().mean()))
    assert errors[1] < 0.8 * errors[0]


def test_where_all_is_known_nothing_is_changed():
    x, _, tuned = pair((2, 1))
    site, *_ = second(tuned, x)
    assert not site.decisions.any()


def error(x, snn):
    """Return the mean square of what the second site sends wrongly, in its units."""
    _, expected, spikes = second(snn, x)
    sent = (spikes * torch.tensor([8.0, 4.0, 2.0, 1.0]).view(-1, *[1] * (spikes.dim() - 1))).sum(0)
    return float((sent - (expected[-1] - 0.5).clamp(0, 15)).square().mean())


def test_a_part_of_the_samples_is_enough(monkeypatch):
    x, plain, whole = pair(samples=1024)
    parts = set()
    monkeypatch.setattr(decision_table, "VALUES", 512)
    monkeypatch.setattr(decision_table, "_costs", lambda *args: parts.add(args[-1]) or costs(*args))
    x, _, part = pair(samples=1024)
    assert len(parts) == 8  # of 16
    assert error(x, whole) < 0.9 * error(x, plain)
    assert error(x, part) < 0.9 * error(x, plain)


def test_some_positions_of_each_sample_are_enough(monkeypatch):
    ann, neuron = convolutional(), WeightedIF(weights=(8, 4, 2, 1))
    x = live_inputs(ann, 2, 12, 12, samples=64)
    plain, whole = converted(ann, x, neuron), converted(ann, x, neuron, cx.tuners.DecisionTable())
    values = {}

    def counted(stop, *args):
        found = costs(stop, *args)
        values[args[-1]] = stop.kept("expected", args[-1], lambda: pytest.fail("not kept")).shape[2]
        return found

    monkeypatch.setattr(decision_table, "MOST", 1024)
    monkeypatch.setattr(decision_table, "_costs", counted)
    part = converted(ann, x, neuron, cx.tuners.DecisionTable())
    assert 1024 <= sum(values.values()) <= 2048  # of 4,096; the first site knows its input
    assert error(x, whole) < 0.9 * error(x, plain)
    assert error(x, part) < 0.9 * error(x, plain)
