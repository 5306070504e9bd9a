"""What is measured: the median of runs that take turns, without the first."""

from __future__ import annotations

import pytest

from conversion_ext import bench
from conversion_ext.__main__ import main


def test_runs_take_turns_and_the_first_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    durations = {"a": iter([100.0, 1.0, 5.0, 2.0]), "b": iter([100.0, 7.0, 7.0, 8.0])}
    order: list[str] = []

    def run(name: str) -> None:
        nonlocal now
        order.append(name)
        now += next(durations[name])

    monkeypatch.setattr("conversion_ext.bench.time.perf_counter", lambda: now)
    assert bench.medians({"a": lambda: run("a"), "b": lambda: run("b")}, 3) == {"a": 2.0, "b": 7.0}
    assert order == ["a", "b"] * 4


def test_the_command_prints_a_row_for_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--T", "1", "--batch", "2", "--repeats", "1", "--backend", "reference"]) == 0
    printed = capsys.readouterr().out
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ") and "run" not in line]
    assert [row[0].removeprefix("| ") for row in rows][0] == bench.UNIT
    assert len(rows) == 7
    assert rows[0][2] == "1.00 |"
    assert all(float(row[1]) > 0 for row in rows)


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--T", "0"])
