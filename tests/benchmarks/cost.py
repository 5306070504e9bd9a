"""What a conversion costs: ``python -m tests.benchmarks.cost [--networks resnet20 vgg] [--T 2 4 8 16]``.

CPU seconds of ``convert`` with ``--recipe`` (default ``default``), by stage, and in units of forward passes of the ANN
over the calibration data: the pass is timed before and after each conversion, so that both see the same machine. Peak
memory is by how much the conversion raised that of a process of its own. Beside it SpikingJelly's 99.9 % recipe and its
local threshold balancing on the same batches, where it converts the network. ``--seconds`` gives ``budget_s=``.

Networks: the four of ``networks.py`` on Fashion-MNIST, and those of ``published_networks.py`` whose files are there.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from spikingjelly.activation_based.ann2snn import Converter, LocalThresholdBalancingRecipe, RateCodingRecipe
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.conversion import pipeline
from conversion_ext.data.datasets import load
from conversion_ext.tuners import tuners
from conversion_ext.tuners.memory import resident
from tests.benchmarks.published_networks import NETWORKS, available, data_folder, with_convolutions
from tests.benchmarks.train import HELD_OUT, trained

OURS = ("vgg", "resnet20_28", "inception", "mobilenet")
IMAGES = {"efficientnet_lite0": 128}  # calibration images; 1,024 of all others
BATCH = 64
STAGES = {"observe": "statistics", "thresholds_of": "thresholds", "assemble": "neurons", "fold_units": "folding"}


def network(name: str, folder: Path | None) -> tuple[nn.Module, list[Tensor]]:
    """Return a trained network and its calibration batches."""
    count = IMAGES.get(name, 1024)
    if name in OURS:
        images = load("fashion-mnist").train.tensors[0][-HELD_OUT:][:count]
        return trained(name.removesuffix("_28")), list(images.split(BATCH))
    if folder is None or name not in available(folder):
        raise SystemExit(f"{name}: its files are not there; give --data, or name another network.")
    published = NETWORKS[name]
    return published.make(folder), list(published.images(folder, "train").of(0, count).split(BATCH))


def cpu(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of this process that ``run`` took, and what it returned."""
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


def forward_pass(ann: nn.Module, batches: list[Tensor]) -> float:
    """Return the CPU seconds of the ANN over the data, as its user runs it."""

    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                ann(batch)

    return min(cpu(run)[0] for _ in range(2))


@contextmanager
def stages() -> Iterator[dict[str, float]]:
    """Yield {stage: CPU seconds}, filled by conversions inside."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            seconds, found = cpu(lambda: function(*args, **options))
            spent[name] += seconds
            return found

        return run

    with ExitStack() as stack:
        for attribute, name in STAGES.items():
            stack.enter_context(mock.patch.object(pipeline, attribute, timed(name, getattr(pipeline, attribute))))
        for name in tuners.names():
            tuner = tuners.get(name)
            stack.enter_context(mock.patch.object(tuner, "tune", timed(name, tuner.tune)))
        yield spent


def convert(ann: nn.Module, batches: list[Tensor], T: int, options: argparse.Namespace) -> nn.Module:
    """Convert as a user does."""
    more = {} if options.seconds is None else {"budget_s": options.seconds}
    return cx.convert(ann, batches, recipe=options.recipe, T=T, progress=False, **more)


def row(name: str, ann: nn.Module, batches: list[Tensor], T: int, options: argparse.Namespace) -> str:
    """Return a row: seconds, passes, memory, and the share of each stage."""
    before = forward_pass(ann, batches)
    with stages() as spent:
        seconds, _ = cpu(lambda: convert(ann, batches, T, options))
    unit = (before + forward_pass(ann, batches)) / 2
    spent["walking"] = seconds - sum(spent.values())
    shares = ", ".join(f"{stage} {each / unit:.1f}" for stage, each in spent.items() if each > 0.05 * unit)
    memory = peak(name, T, options) if options.memory else ""
    return f"| {name}, T = {T} | {seconds:.1f} | {unit:.2f} | {seconds / unit:.1f} | {memory} | {shares} |"


def theirs(name: str, ann: nn.Module, batches: list[Tensor]) -> Iterator[str]:
    """Yield rows of SpikingJelly's recipes on the same batches."""
    labelled = [(batch, torch.zeros(len(batch))) for batch in batches]
    for title, recipe in (
        ("99.9 %", RateCodingRecipe(labelled, mode="99.9%")),
        ("LTB", LocalThresholdBalancingRecipe(labelled)),
    ):
        unit = forward_pass(ann, batches)
        try:
            seconds, _ = cpu(lambda recipe=recipe: Converter(recipe).convert(with_convolutions(ann)))
        except Exception as error:  # noqa: BLE001  whatever it is, it does not convert this network
            yield f"| {name}, SpikingJelly {title} | does not convert: {str(error).splitlines()[0][:90]} | | | | |"
            continue
        yield f"| {name}, SpikingJelly {title} | {seconds:.1f} | {unit:.2f} | {seconds / unit:.1f} | | |"


def peak(name: str, T: int, options: argparse.Namespace) -> str:
    """Return by how many MiB a conversion raised the peak memory of a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.cost", "--networks", name, "--T", str(T), "--only"]
    command += ["--recipe", options.recipe] + (["--data", str(options.data)] if options.data else [])
    command += [] if options.seconds is None else ["--seconds", str(options.seconds)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


def only(name: str, T: int, options: argparse.Namespace) -> int:
    """Convert once; return by how many MiB that raised the peak memory of this process."""
    ann, batches = network(name, data_folder(options.data))
    with torch.inference_mode():
        ann(batches[0])  # what any use of the network takes is not the conversion's
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident() >> 20
    convert(ann, batches, T, options)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10) - before


def main() -> None:
    """Measure and print."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=None, choices=[*OURS, *NETWORKS])
    parser.add_argument("--T", nargs="+", type=int, default=[2, 4, 8, 16])
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--seconds", type=float, default=None, help="budget_s= of convert")
    parser.add_argument("--data", type=Path, default=None, help="folder of the published networks")
    parser.add_argument("--memory", action="store_true", help="peak memory too, each in a process of its own (Linux)")
    parser.add_argument("--no-theirs", action="store_true", help="leave SpikingJelly out")
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = data_folder(options.data)
    names = options.networks or [*OURS, *(["resnet20"] if folder and "resnet20" in available(folder) else [])]
    if options.only:
        print(only(names[0], options.T[0], options))
        return
    print(f"{torch.get_num_threads()} threads, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}\n")
    print("| conversion | CPU s | ANN pass s | passes | MiB | passes by stage |\n|---|---|---|---|---|---|")
    for name in names:
        ann, batches = network(name, folder)
        for T in options.T:
            print(row(name, ann, batches, T, options), flush=True)
        if not options.no_theirs:
            for line in theirs(name, ann, batches):
                print(line, flush=True)


if __name__ == "__main__":
    main()
