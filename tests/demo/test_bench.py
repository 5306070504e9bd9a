"""What is measured: the median of runs that take turns, without the first."""

from __future__ import annotations

import pytest

from conversion_ext.__main__ import main
from conversion_ext.demo import bench


def test_runs_take_turns_and_the_first_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    durations = {"a": iter([100.0, 1.0, 5.0, 2.0]), "b": iter([100.0, 7.0, 7.0, 8.0])}
    order: list[str] = []

    def run(name: str) -> None:
        nonlocal now
        order.append(name)
        now += next(durations[name])

    for clock in ("perf_counter", "process_time"):  # which of them depends on the threads of this machine
        monkeypatch.setattr(f"conversion_ext.demo.bench.time.{clock}", lambda: now)
    assert bench.medians({"a": lambda: run("a"), "b": lambda: run("b")}, 3) == {"a": 2.0, "b": 7.0}
    assert order == ["a", "b"] * 4


@pytest.mark.parametrize(("threads", "clock"), [(1, "process_time"), (2, "perf_counter")])
def test_one_thread_is_timed_by_the_processor(monkeypatch: pytest.MonkeyPatch, threads: int, clock: str) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    now = [0.0]
    monkeypatch.setattr(f"conversion_ext.demo.bench.time.{clock}", lambda: now[0])
    assert bench.medians({"a": lambda: now.insert(0, now[0] + 4.0)}, 1) == {"a": 4.0}


def test_the_clock_is_read_when_the_device_has_done_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a call returns before its work is done: what is pending is waited for on both sides of a run."""
    order: list[str] = []
    monkeypatch.setattr("torch.cuda.synchronize", lambda: order.append("wait"))
    monkeypatch.setattr(
        "conversion_ext.demo.bench.time.perf_counter", lambda: order.append("clock") or float(len(order))
    )
    bench.medians({"a": lambda: order.append("run")}, 1, device="cuda")
    assert order == ["wait", "clock", "run", "wait", "wait", "clock", "run", "wait", "clock"]


def test_the_benchmark_refuses_a_device_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("spikingjelly.activation_based.ann2snn", reason="its RateCodingRecipe")
    pytest.importorskip("snntorch")
    speed = pytest.importorskip("tests.benchmarks.speed")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["speed", "--device", "cuda"])
    with pytest.raises(SystemExit) as exit_:
        speed.main()
    assert exit_.value.code == 2
    assert "--device cuda: torch sees no CUDA device" in capsys.readouterr().err


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
