"""Results are alike: whatever a public function returns prints as a short table, shows in a notebook, gives plain data.

And the library speaks through results, warnings and ``logging`` alone: nothing in it prints, but for its commands.
"""

from __future__ import annotations

import ast
import inspect
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext import analysis
from conversion_ext.demo import demo
from conversion_ext.network.record import Widths
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.tables import Report, Sheet

PACKAGE = Path(cx.__file__).parent
COMMANDS = ("__main__.py", "demo/console/conversion_ext_command/__init__.py")  # what a shell reads
MEASURING = tuple(f"conversion_ext.{room}." for room in ("analysis", "simulation", "training", "network", "demo"))
NONE_TO_SHOW = (nn.Module, Sheet, Widths)  # a network shows itself


def returned(function: Any) -> Iterator[type]:
    """The classes of measuring rooms that a function returns, alone or in a collection."""
    function = inspect.unwrap(function.fget if isinstance(function, property) else function)
    if not inspect.isfunction(function):
        return
    try:
        left = [eval(str(function.__annotations__.get("return")), function.__globals__)]
    except NameError:  # of a package that is imported for type checkers alone, such as matplotlib
        return
    while left:
        hint = left.pop()
        left += typing.get_args(hint)
        if inspect.isclass(hint) and hint.__module__.startswith(MEASURING):
            yield hint


def results() -> dict[str, type]:
    """{name: class} of all results: what public functions return, and what methods of results return in turn."""
    functions: list[Any] = [getattr(home, name) for home in (cx, analysis, demo) for name in home.__all__]
    left = [kind for function in [*functions, *vars(SpikingNetwork).values()] for kind in returned(function)]
    found: dict[str, type] = {}
    while left:
        kind = left.pop()
        if kind.__name__ not in found and not issubclass(kind, NONE_TO_SHOW):
            found[kind.__name__] = kind
            left += [each for name, member in vars(kind).items() if name[0] != "_" for each in returned(member)]
    return found


RESULTS = results()


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """One result of every kind, of a tiny network."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.rand(40, 6)
    y = ann(x).argmax(1)
    options: dict[str, Any] = {"backend": "reference", "progress": False}
    snn = cx.convert(ann, x, T=4, **options)
    count = cx.synops(snn, x, 4)
    found = [
        snn.conversion, snn.conversion.table(), cx.simulate(snn, x, 4), count, count.energy(),
        cx.evaluate(snn, [(x, y)], 4, progress=False), cx.forecast(snn, [(x, y)], (2, 4), progress=False),
        cx.tune(ann, (x, y), 4, budget=0.01, **options), cx.diagnose(snn, ann, (x, y), 4),
        analysis.decompose(snn, x, 4, ann=ann), analysis.limits(snn, x, 4),
        analysis.sweep(snn, [(x, y)], 4, ann=ann, calibration=x),
        cx.finetune(cx.convert(ann, x, T=4, fold=False, **options), [(x, y)] * 2, T=4, epochs=1, progress=False),
    ]  # fmt: skip
    return {type(each).__name__: each for each in found}


def test_results_are_discovered():
    assert set(RESULTS) >= {
        "Evaluation",
        "Forecast",
        "Simulation",
        "Diagnosis",
        "TuneResult",
        "OperationCount",
        "Energy",
    }


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_a_report(name):
    assert issubclass(RESULTS[name], Report)


@pytest.mark.parametrize(
    "name", [name for name, kind in RESULTS.items() if not kind.__module__.startswith("conversion_ext.demo")]
)
def test_every_result_prints_shows_and_gives_plain_data(name, made):
    result = made[name]
    text = str(result)
    assert 2 <= len(text.splitlines()) < 60
    assert "object at 0x" not in text
    assert "tensor(" not in text
    html = result._repr_html_()
    assert "<table" in html
    assert html.count("<table") == html.count("</table>")
    data = json.loads(json.dumps(result.to_dict()))
    assert data
    assert "object at 0x" not in json.dumps(data)


def test_a_network_shows_layers_and_neurons_in_their_order():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(4, 2), nn.Linear(3, 4)

        def forward(self, x):
            return self.last(nn.functional.relu(self.first(x)))

    lines = repr(cx.convert(Backwards(), torch.rand(8, 3), backend="reference", progress=False)).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == ["(first)", "(relu)", "(last)"]
    assert "IF(v_init=0.5" in lines[2]


SOURCES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in COMMANDS])
def test_the_library_does_not_print(name):
    tree = ast.parse(SOURCES[name].read_text(encoding="utf-8"))
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [call for call in calls if call in ("print", "pprint", "sys.stdout.write", "sys.stderr.write")]


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "data/progress.py"])
def test_all_bars_are_made_in_one_place(name):
    assert "tqdm" not in SOURCES[name].read_text(encoding="utf-8")


@pytest.mark.parametrize(("shown", "ci", "silent"), [(True, "", False), (True, "true", True), (False, "", True)])
def test_bars_tell_what_is_done_and_are_quiet_in_ci(shown, ci, silent, monkeypatch, capsys):
    monkeypatch.setenv("CI", ci)
    ann = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    x, y = torch.rand(8, 4), torch.arange(8) % 3
    snn = cx.convert(ann, x, T=2, backend="reference", progress=shown)
    cx.evaluate(snn, [(x, y)] * 3, 2, progress=shown)
    cx.forecast(snn, [(x, y)] * 3, (2,), progress=shown)
    written = capsys.readouterr()
    assert written.out == ""
    assert (written.err == "") is silent
    assert silent or ("100%" in written.err and "evaluation: 100%" in written.err and "3/3" in written.err)


@pytest.mark.filterwarnings("always")
def test_a_warning_is_given_once_and_at_the_line_of_the_user():
    ann = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    nn.init.constant_(ann[0].bias, -100.0)
    with pytest.warns(UserWarning, match="Not active") as seen:
        cx.convert(ann, torch.rand(8, 4), T=2, backend="reference", progress=False)
    assert len(seen) == 1
    assert seen[0].filename == __file__


def test_what_is_made_is_logged(caplog):
    ann = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    x, y = torch.rand(8, 4), torch.arange(8) % 3
    with caplog.at_level("INFO", "conversion_ext"):
        snn = cx.convert(ann, x, T=2, backend="reference", progress=False)
        cx.finetune(snn, [(x, y)] * 2, T=2, epochs=1, progress=False)
    assert caplog.messages[0] == f"converted: {snn.conversion!r}"
    assert any(message.startswith("epoch 1: loss ") for message in caplog.messages)
    assert {record.name for record in caplog.records} == {"conversion_ext"}
