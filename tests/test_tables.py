"""Reports print as aligned tables, show as HTML, and give plain data."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.tables import Report, Sheet, aligned, plain, spread


@dataclass(frozen=True, repr=False)
class Found(Report):
    values: Tensor
    network: nn.Module
    family: cx.neurons.IF

    def sheet(self) -> Sheet:
        return Sheet(("name", "value"), [("a<b", "1"), ("long name", "10.25")], "title", ("a note",))


def test_columns_are_aligned():
    lines = aligned([("site", "rate"), ("relu", "0.5"), ("a", "10")]).splitlines()
    assert lines == ["site  rate", "relu   0.5", "a       10"]
    assert aligned([]) == ""


def test_a_report_prints_shows_and_gives_plain_data():
    found = Found(torch.tensor([1.0, 2.0]), nn.Linear(1, 1), cx.IF())
    assert str(found) == repr(found) == "title\nname       value\na<b            1\nlong name  10.25\na note"
    html = found._repr_html_()
    assert html.count("<tr>") == 3
    assert "a&lt;b" in html
    assert json.loads(json.dumps(found.to_dict())) == {
        "values": [1.0, 2.0],
        "family": {"v_init": 0.5, "reset": "subtract"} | {k: v for k, v in found.to_dict()["family"].items()},
    }


def test_plain_data_is_plain():
    assert plain({"a": (1, None, torch.ones(2, 1)), 3: cx.Reset.ZERO}) == {"a": [1, None, [[1.0], [1.0]]], "3": "zero"}


def test_few_of_many_are_shown():
    assert spread(5) == [0, 1, 2, 3, 4]
    for count in (8, 9, 32, 33, 1000, 10**6):
        shown = spread(count)
        assert len(shown) <= 8
        assert shown[-1] == count - 1
        assert shown == sorted(set(shown))
