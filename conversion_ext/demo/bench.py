"""How long a simulation takes on this machine, beside its floor: T forward passes of the ANN."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from conversion_ext.capture.preparation import prepare
from conversion_ext.conversion.pipeline import convert
from conversion_ext.demo.demo import network
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.network.state import reset
from conversion_ext.simulation.simulation import simulate

__all__ = ["Run", "forwards", "loop", "medians", "ours", "report", "table"]

Run = Callable[[], object]
"""One measurement: T steps of one batch."""

UNIT = "ANN x T"


def forwards(ann: nn.Module, x: Tensor, T: int) -> Iterator[tuple[str, Run]]:
    """Yield T forward passes of ``ann``, BatchNorm folded: as it is, channels-last, and that in bfloat16."""
    plain = prepare(ann, (x,))
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    narrow = copy.deepcopy(last).to(torch.bfloat16)
    for name, net in {UNIT: plain, f"{UNIT} channels-last": last, f"{UNIT} channels-last bfloat16": narrow}.items():
        parameter = next(net.parameters())
        form = torch.contiguous_format if net is plain else torch.channels_last
        yield name, _repeated(net, x.to(parameter.dtype, memory_format=form), T)


def ours(snn: SpikingNetwork, x: Tensor, T: int) -> Iterator[tuple[str, Run]]:
    """Yield simulations of ``snn`` in every precision."""
    yield "simulate float32", lambda: simulate(snn, x, T, at=[T])
    yield "simulate bfloat16", lambda: simulate(snn, x, T, at=[T], dtype="bfloat16")
    yield "simulate int8 weights", lambda: simulate(snn, x, T, at=[T], weights="int8")


def loop(snn: nn.Module, x: Tensor, T: int, forget: Callable[[nn.Module], object] = reset) -> Run:
    """Return a plain loop over the steps of a spiking network: its framework's own speed."""
    step = _repeated(snn, x, T)

    def run() -> None:
        forget(snn)
        step()

    return run


def _repeated(net: nn.Module, x: Tensor, T: int) -> Run:
    def run() -> None:
        with torch.inference_mode():
            for _ in range(T):
                net(x)

    return run


def medians(runs: Mapping[str, Run], repeats: int, device: str = "cpu") -> dict[str, float]:
    """Return the median seconds of each run, after one to warm up; they take turns, so all see the same machine.

    What ``device`` is still at work on is waited for, before a run and after it. On one thread of a CPU seconds are the
    processor's own, which other programs on the machine do not lengthen.
    """
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    wait = torch.get_device_module(device).synchronize
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(repeats + 1):
        for name, run in runs.items():
            wait()
            start = clock()
            run()
            wait()
            if round_:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(seconds: Mapping[str, float], samples: int) -> str:
    """Return milliseconds per sample and the ratio to the first row."""
    unit = next(iter(seconds.values()))
    rows = [f"| {name} | {1e3 * s / samples:.3f} | {s / unit:.2f} |" for name, s in seconds.items()]
    return "\n".join(["| run | ms per sample | ratio |", "|---|---|---|", *rows])


def report(backend: str | None = None, T: int = 32, batches: tuple[int, ...] = (1, 64), repeats: int = 5) -> str:
    """Return tables for a small convolutional network on images [N, 1, 28, 28]; weights do not matter for time."""
    generator = torch.Generator().manual_seed(0)
    parts = [f"{torch.get_num_threads()} threads of a {torch.backends.cpu.get_cpu_capability()} CPU, T = {T}, medians."]
    ann = network().eval()
    for batch in batches:
        x = torch.rand(batch, 1, 28, 28, generator=generator)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Not active on the calibration data")  # of random weights no wonder
            snn = convert(ann, torch.rand(64, 1, 28, 28, generator=generator), backend=backend, progress=False)
        name = f"loop over the {snn.conversion.backend} modules"
        runs = {**dict(forwards(ann, x, T)), **dict(ours(snn, x, T)), name: loop(snn, x, T)}
        parts += [f"\nBatch {batch}:\n", table(medians(runs, repeats), batch)]
    return "\n".join(parts)
