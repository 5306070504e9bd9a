"""Verbs are called alike: analyses as ``(snn, data, T, *, ann=None)``, and evaluate with all that simulate takes."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext import analysis
from conversion_ext.readouts import Confidence, MeanOutput
from conversion_ext.simulation.options import RunOptions

# ``twin`` makes a network, ``tune`` starts from the ANN, and ``diagnose`` is nothing without one.
OTHERS = {"twin", "tune", "diagnose"}
ANALYSES = {
    name: value
    for home in (cx, analysis)
    for name in {*analysis.__all__, "evaluate", "forecast", "synops"} - OTHERS
    if inspect.isfunction(value := getattr(home, name, None))
}
# Not options of a run, but what is run, when it is decoded, and what becomes of the state.
OF_ONE_CALL = {"snn", "x", "T", "x_seq", "at", "record", "reset"}
OPTIONS: dict[str, Any] = {
    "readout": MeanOutput(start=2), "time_chunk": 3, "block": 4, "exit": Confidence(0.5), "dtype": "bfloat16",
    "weights": "int8", "compile": False, "delay_per_layer": 1, "generator": torch.Generator(),
}  # fmt: skip
T = 8


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_is_called_alike(name):
    parameters = list(inspect.signature(ANALYSES[name]).parameters.values())
    assert [p.name for p in parameters[:4]] == ["snn", "data", "T", "ann"]
    assert parameters[3].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters[3].default is None
    assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in parameters[3:])


def test_options_of_a_run_are_those_of_simulate():
    of_simulate = set(inspect.signature(cx.simulate).parameters) - OF_ONE_CALL
    assert of_simulate == set(RunOptions.__annotations__) == set(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_evaluate_takes_what_simulate_takes(name):
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x, y = torch.rand(60, 6), torch.arange(60) % 3
    snn = cx.convert(ann, x, recipe=cx.Recipe(cx.Percentile(90)), backend="reference", progress=False)
    at = {} if name == "exit" else {"at": (4, T)}
    run = cx.simulate(snn, x, T, **at, **{name: OPTIONS[name]})
    scores = (run.outputs.argmax(2) == y).double().mean(1)
    found = cx.evaluate(snn, (x, y), T, **at, **{name: OPTIONS[name]}, progress=False)
    assert torch.equal(found.score, scores)
    assert found.latency_steps == run.latency_steps
