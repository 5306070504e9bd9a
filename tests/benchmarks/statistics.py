"""Time, peak memory and error of the observer beside SpikingJelly 2.0's hooks and torch.quantile.

    OMP_NUM_THREADS=2 python tests/benchmarks/statistics.py [--rounds 3]

A stream of 8 tensors [64, 64, 56, 56]; the 99.9th percentile per layer and per channel. Each method runs in a process
of its own, in turn; times are medians over all batches of all rounds, memory is the growth of the peak resident size
over that of the process holding one batch, errors are relative to the exact quantile of the whole stream. The last
row is per-channel statistics of torchvision's resnet50: peak resident size and time with an observer and without.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT)  # in place of this folder, where `statistics` would be this file for whoever imports it

# ruff: noqa: E402
import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHAPE, BATCHES, P = (64, 64, 56, 56), 8, 99.9


def stream() -> Iterator[Tensor]:
    """The batches, made in one buffer: half zeros, channels of different scale, batches that differ a little."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-1, 1, SHAPE[1])[:, None, None]
    x = torch.empty(SHAPE)
    for index in range(BATCHES):
        yield x.normal_(generator=generator).mul_(scale * (1 + 0.1 * index)).relu_()


Method = tuple[Callable[[Tensor], object], Callable[[], Tensor]]


def ours(per_channel: bool) -> Method:
    from conversion_ext.calibration.statistics import ActivationStats
    from conversion_ext.types import PerChannel, PerLayer

    stats = ActivationStats("site", PerChannel() if per_channel else PerLayer())
    return stats.update, lambda: stats.quantile(P)


def spikingjelly(per_channel: bool) -> Method:
    from spikingjelly.activation_based.ann2snn.modules import VoltageHook
    from spikingjelly.activation_based.ann2snn.recipes.rate_coding import ChannelVoltageHook

    hook = ChannelVoltageHook(mode=f"{P}%") if per_channel else VoltageHook(mode=f"{P}%").train()
    return hook, lambda: hook.scale


def torch_quantile(per_channel: bool) -> Method:
    """Keep the mean over batches: what a single call over all data would need is all data at once."""
    found: list[Tensor] = []

    def update(x: Tensor) -> None:
        if per_channel:
            found.append(torch.quantile(x.movedim(1, 0).flatten(1), P / 100, dim=1))
        else:
            found.append(torch.quantile(x, P / 100))

    return update, lambda: torch.stack(found).mean(0)


METHODS = {"conversion_ext": ours, "SpikingJelly 2.0 hook": spikingjelly, "torch.quantile, mean": torch_quantile}


def peak() -> int:
    """Peak resident size of this process in bytes (Linux; getrusage would include that of the parent)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def run_method(name: str, per_channel: bool) -> dict[str, Any]:
    """Run one method over the stream, in this process."""
    update, result = METHODS[name](per_channel)
    times: list[float] = []
    base = 0
    with torch.inference_mode():
        for x in stream():
            base = base or peak()
            start = time.perf_counter()
            update(x)
            times.append(time.perf_counter() - start)
        start = time.perf_counter()
        value = result()
        finish = time.perf_counter() - start
    return {"times": times, "finish": finish, "memory": peak() - base, "value": value.double().reshape(-1).tolist()}


def run_resnet(observed: bool) -> dict[str, Any]:
    """Run a resnet50 on 4 batches of 8 images, with or without an observer; return time and peak memory."""
    from torchvision.models import resnet50

    from conversion_ext.calibration.observer import Observer
    from conversion_ext.capture.preparation import find_sites, prepare
    from conversion_ext.types import PerChannel

    torch.manual_seed(0)
    x = torch.randn(8, 3, 224, 224)
    model = prepare(resnet50(weights=None).eval(), (x,), (), ())
    sites = find_sites(model)
    times: list[float] = []
    with torch.inference_mode(), Observer(model, sites if observed else [], PerChannel()) as observer:
        for _ in range(4):
            start = time.perf_counter()
            model(x.normal_())
            times.append(time.perf_counter() - start)
        for stats in observer.stats.values():
            stats.quantile(P)
    return {"times": times, "memory": peak(), "sites": len(sites)}


def child(*arguments: str) -> dict[str, Any]:
    """Run this file in a new process and return what it reports."""
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def exact(per_channel: bool) -> np.ndarray:
    """The quantile of the whole stream from its order statistics, in float64."""
    whole = torch.stack([x.clone() for x in stream()]).movedim(2, 0)
    values = whole.flatten(1).numpy() if per_channel else whole.reshape(1, -1).numpy()
    place = P / 100 * (values.shape[1] - 1)
    k = int(place)
    low, high = np.partition(values, (k, k + 1), axis=1)[:, k : k + 2].astype(np.float64).T
    return low + (high - low) * (place - k)


def main(rounds: int) -> None:
    for per_channel in (False, True):
        truth = exact(per_channel)
        times: dict[str, list[float]] = {name: [] for name in METHODS}
        last: dict[str, dict[str, Any]] = {}
        for _ in range(rounds):
            for name in METHODS:
                last[name] = child(name, str(int(per_channel)))
                times[name] += last[name]["times"]
        median = {name: np.median(times[name]) for name in METHODS}
        print(f"\n{'per channel' if per_channel else 'per layer'}, {torch.get_num_threads()} threads")
        print(f"{'method':24}{'ms/batch':>10}{'speed':>8}{'finish ms':>11}{'peak MiB':>10}{'worst error':>13}")
        for name in METHODS:
            error = np.abs(np.array(last[name]["value"]) / truth - 1).max()
            speed = median["torch.quantile, mean"] / median[name]
            finish, memory = 1e3 * last[name].get("finish", 0), last[name]["memory"] / 2**20
            print(f"{name:24}{1e3 * median[name]:10.1f}{speed:7.1f}x{finish:11.1f}{memory:10.0f}{error:13.3%}")
    plain, observed = child("resnet", "0"), child("resnet", "1")
    slower = np.median(observed["times"]) / np.median(plain["times"])
    print(
        f"\nresnet50 per channel, {observed['sites']} sites: "
        f"peak {observed['memory'] / 2**30:.2f} GiB, {plain['memory'] / 2**30:.2f} without; "
        f"{slower:.2f} x the time of the forward pass"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("METHOD", "PER_CHANNEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        method, flag = options.child
        report = run_resnet(flag == "1") if method == "resnet" else run_method(method, flag == "1")
        print(json.dumps(report))
    else:
        main(options.rounds)
