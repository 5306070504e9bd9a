"""Speed, memory and calibration beside SpikingJelly and snnTorch: ``python -m tests.benchmarks.speed``.

One trained network per table; medians of runs that take turns in one process, as ratios to T forward passes of the ANN
(BatchNorm folded, eager, NCHW), so that format (channels-last, bfloat16) and engine can be told apart. SpikingJelly is
``RateCodingRecipe`` in both step modes; snnTorch a loop over the ANN with its ReLUs made stock ``Leaky``. Peak memory
is that of a process of its own for every run (``--memory``). A short run: ``--networks vgg --batches 64 --T 8``.
"""

from __future__ import annotations

import argparse
import copy
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import snntorch.utils
import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.ann2snn import Converter, RateCodingRecipe
from torch import Tensor, nn
from torchvision.models import resnet18

import conversion_ext as cx
from conversion_ext.bench import Run, forwards, loop, medians, ours
from conversion_ext.check import prepare
from conversion_ext.data import load
from conversion_ext.readouts import Cutoff
from tests.benchmarks.train import HELD_OUT, trained

NETWORKS = ("vgg", "resnet20", "resnet18")


def network(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network and images: trained ones on held-out Fashion-MNIST, resnet18 with random weights on noise."""
    if name == "resnet18":
        torch.manual_seed(0)
        return resnet18().eval(), torch.rand(64, 3, 224, 224)
    return trained(name), load("fashion-mnist").train.tensors[0][-HELD_OUT:]


def contenders(ann: nn.Module, x: Tensor, calibration: Tensor, T: int) -> Iterator[tuple[str, Run]]:
    """Yield (name, run) of everything that is compared."""
    batches = [(part, torch.zeros(len(part))) for part in calibration.split(64)]
    snn = cx.convert(ann, calibration, backend="spikingjelly", progress=False)
    yield from forwards(ann, x, T)
    yield from ours(snn, x, T)
    yield "loop over our SpikingJelly modules", loop(snn, x, T)
    for form, dtype in (
        (torch.contiguous_format, None),
        (torch.channels_last, None),
        (torch.channels_last, torch.bfloat16),
    ):
        theirs = Converter(RateCodingRecipe(batches, mode="99.9%")).convert(ann).eval().to(memory_format=form)
        theirs = theirs if dtype is None else theirs.to(dtype)
        given = x.to(dtype or x.dtype, memory_format=form)
        suffix = f"{' channels-last' if form is torch.channels_last else ''}{' bfloat16' if dtype else ''}"
        yield f"SpikingJelly s{suffix}", loop(theirs, given, T, functional.reset_net)
        multi = copy.deepcopy(theirs)
        functional.set_step_mode(multi, "m")
        yield f"SpikingJelly m{suffix}", _sequence(multi, given, T)
    yield "snnTorch loop", loop(leaky(ann, x), x, T, snntorch.utils.reset)


def _sequence(snn: nn.Module, x: Tensor, T: int) -> Run:
    def run() -> None:
        functional.reset_net(snn)
        with torch.inference_mode():
            snn(x.expand(T, *x.shape))

    return run


def leaky(ann: nn.Module, x: Tensor) -> nn.Module:
    """Return the network with stock snnTorch neurons; thresholds do not matter for time."""
    model = prepare(ann, (x,))
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU):
            model.set_submodule(name, snntorch.Leaky(beta=1.0, init_hidden=True))
    return model


def calibration_seconds(ann: nn.Module, images: Tensor) -> dict[str, float]:
    """Return the time of a whole conversion with 99.9 % percentiles, per layer as SpikingJelly's and per channel."""
    batches = [(part, torch.zeros(len(part))) for part in images.split(64)]
    layer = cx.Recipe(cx.Percentile(99.9, granularity=cx.PerLayer()))
    runs: dict[str, Run] = {
        "SpikingJelly 99.9%": lambda: Converter(RateCodingRecipe(batches, mode="99.9%")).convert(ann),
        "ours per layer": lambda: cx.convert(
            ann, images.split(64), recipe=layer, backend="spikingjelly", progress=False
        ),
        "ours per channel": lambda: cx.convert(ann, images.split(64), backend="spikingjelly", progress=False),
    }
    return medians(runs, 3)


def accuracy(ann: nn.Module, calibration: Tensor, T: int, images: int) -> Iterator[str]:
    """Yield a row per precision and for early exit: accuracy on held-out training images, and their mean steps.

    The exit is calibrated on as many other held-out images, for a loss of 0.1 points.
    """
    x, y = (part[-HELD_OUT:] for part in load("fashion-mnist").train.tensors)
    snn = cx.convert(ann, calibration, backend="spikingjelly", progress=False)
    seen = torch.cat([cx.simulate(snn, part, T).outputs for part in x[:images].split(250)], 1)
    rule = Cutoff.calibrate(seen, y[:images])
    options: dict[str, dict[str, Any]] = {
        "float32": {"at": [T]}, "bfloat16": {"at": [T], "dtype": "bfloat16"}, "int8": {"at": [T], "weights": "int8"},
        "early exit": {"exit": rule},
    }  # fmt: skip
    yield f"\n| T = {T}, {images} images | accuracy | steps per image | ms per image |\n|---|---|---|---|"
    for name, option in options.items():
        start = time.perf_counter()
        runs = [cx.simulate(snn, part, T, **option) for part in x[-images:].split(250)]
        spent = 1e3 * (time.perf_counter() - start) / images
        right = (torch.cat([run.output for run in runs]).argmax(1) == y[-images:]).double().mean()
        steps = torch.cat([run.steps for run in runs if run.steps is not None] or [torch.tensor([T])]).double().mean()
        yield f"| {name} | {100 * right:.2f} | {steps:.1f} | {spent:.2f} |"


def peak(name: str, contender: str, batch: int, T: int) -> int:
    """Return by how many MiB one contender raised the peak memory of a process of its own."""
    module = ["-m", "tests.benchmarks.speed", "--networks", name, "--batches", str(batch), "--T", str(T)]
    found = subprocess.run([sys.executable, *module, "--only", contender], capture_output=True, text=True, check=True)
    return int(found.stdout.split()[-1])


def only(name: str, contender: str, batch: int, T: int) -> int:
    """Run one contender; return by how many MiB that raised the peak memory of this process."""
    # No data set is loaded, and calibration sees one image, or these would set the peak.
    ann, images = network(name) if name == "resnet18" else (trained(name), torch.rand(batch, 1, 28, 28))
    run = next(run for name, run in contenders(ann, images[:batch], images[:1], T) if name == contender)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024


def main() -> None:
    """Measure and print."""
    warnings.filterwarnings("ignore", "Not active on the calibration data")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["vgg", "resnet20"], choices=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--T", nargs="+", type=int, default=[4, 32, 128])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="peak memory too, each in a process of its own")
    parser.add_argument("--accuracy", type=int, default=0, metavar="IMAGES", help="accuracy of every precision too")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(only(options.networks[0], options.only, options.batches[0], options.T[0]))
        return
    print(f"{torch.get_num_threads()} threads, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}")
    for name in options.networks:
        ann, images = network(name)
        for T in options.T:
            for batch in options.batches:
                print(f"\n{name}, batch {batch}, T = {T}\n")
                print("| run | ms per image | x ANN | SpikingJelly's best / it | MiB |\n|---|---|---|---|---|")
                runs = dict(contenders(ann, images[:batch], images[:64], T))
                seconds = medians(runs, options.repeats)
                unit = next(iter(seconds.values()))
                best = min(s for run, s in seconds.items() if run in ("SpikingJelly s", "SpikingJelly m"))
                for run, s in seconds.items():
                    memory = peak(name, run, batch, T) if options.memory else ""
                    print(f"| {run} | {1e3 * s / batch:.3f} | {s / unit:.2f} | {best / s:.2f} | {memory} |", flush=True)
        calibration = images[:1024]
        found = ", ".join(f"{run} {s:.2f} s" for run, s in calibration_seconds(ann, calibration).items())
        print(f"\n{name}: conversion with {len(calibration)} images: {found}")
        if options.accuracy and name != "resnet18":
            print("\n".join(accuracy(ann, calibration, options.T[-1], options.accuracy)))


if __name__ == "__main__":
    main()
