"""Vision transformers with spikes into their linear layers, beside SpikingJelly's recipes for transformers.

    python -m tests.benchmarks.attention --store FILE [--networks vit swin] [--methods ...] [--steps 4 8 16 32]
        [--part test] [--images 2000] [--limit ROWS] [--write tests/benchmarks/RESULTS.md]
    python -m tests.benchmarks.attention --large [--methods ...] [--frameworks ...]    # vit_b_16: time and memory

A row is a network, a method and T: accuracy, and the gap to the ANN in points with its paired 95 % interval, of one
calibration set (256 training images) and the same images for all. One line of JSON per finished row goes to FILE, so
that rows can be computed one by one; what is in FILE is printed, and written between the markers of ``--write``.
Develop with ``--part held-out``; the test images are for the figures alone.

SpikingJelly runs as its example does: the image at the first step, then zeros, outputs summed; of the scales of its
thresholds that in ``SCALES`` which is best on held-out images. The quantised ANNs have activations rounded to what T
steps of each of our recipes can express.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.data import load
from tests.benchmarks.train import HELD_OUT, trained

BEGIN, END = "<!-- attention:begin -->", "<!-- attention:end -->"
CALIBRATION, BATCH, DEVELOPED = 256, 100, 200
STEPS = (4, 8, 16, 32)
SCALES = (0.7, 1.0, 1.4)
RECIPES = ("default-attention", "default-attention-weighted")
STA, TD = "SpikingJelly STA, spiking encoders", "SpikingJelly TD (floats, no spikes)"
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Converted:
    """What runs, and what is known of it beside its outputs; None where there is nothing to tell."""

    run: Run
    latency: int | None = None
    driven: float | None = None
    energy: float | None = None
    bits: int | None = None


@dataclass(frozen=True)
class Row:
    """One line of a table; accuracies in per cent, gaps in points; ``refused`` tells why there are none."""

    network: str
    method: str
    T: int
    part: str
    images: int
    ann: float
    accuracy: float = 0.0
    gap: float = 0.0
    interval: float = 0.0
    latency: int | None = None
    driven: float | None = None
    energy: float | None = None
    bits: int | None = None
    refused: str = ""

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What it is a row of."""
        return self.network, self.method, self.T, self.part


def decided(run: Run, images: Tensor) -> Tensor:
    """Return the classes that ``run`` decides on, [N]."""
    with torch.no_grad():
        return torch.cat([run(part).argmax(1) for part in images.split(BATCH)])


def spikingjelly(ann: nn.Module, calibration: Tensor, T: int, scale: float | None) -> Run:
    """Return STA with spiking encoders, thresholds times ``scale``; None: the recipe of equal function, in floats."""
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.ann2snn import Converter, STATransformerRecipe, TransformerTDEquivalentRecipe

    if scale is None:
        recipe: Any = TransformerTDEquivalentRecipe(T)
    else:
        recipe = STATransformerRecipe(
            [(part, None) for part in calibration.split(BATCH)],
            T,
            mode="spiking_encoder",
            threshold_mode="mse",
            threshold_scale=scale,
        )
    snn = Converter(recipe).convert(ann).eval()
    functional.set_step_mode(snn, "s" if scale is None else "m")

    def run(x: Tensor) -> Tensor:
        functional.reset_net(snn)
        steps = torch.cat([x[None], x.new_zeros(T - 1, *x.shape)])
        return torch.stack([snn(step) for step in steps]).sum(0) if scale is None else snn(steps).sum(0)

    return run


def best_of_spikingjelly(ann: nn.Module, calibration: Tensor, T: int) -> Converted:
    """Return STA with the scale that is best on held-out images."""
    images, labels = (part[-HELD_OUT:][:DEVELOPED] for part in load("fashion-mnist").train.tensors)
    runs = [spikingjelly(ann, calibration, T, scale) for scale in SCALES]
    return Converted(max(runs, key=lambda run: int((decided(run, images) == labels).sum())))


def equal_of_spikingjelly(ann: nn.Module, calibration: Tensor, T: int) -> Converted:
    """Return the recipe of equal function."""
    return Converted(spikingjelly(ann, calibration, T, None))


def ours(recipe: str, ann: nn.Module, calibration: Tensor, T: int, *, rounded: bool = False) -> Converted:
    """Return our conversion; ``rounded``: the ANN with activations rounded to what its T steps can express."""
    snn = cx.convert(ann, calibration, T=T, recipe=recipe, backend="reference", progress=False)
    count = cx.synops(snn, calibration[:BATCH], T)
    if rounded:
        return Converted(cx.twin(snn, T), bits=count.bits)
    latency = cx.simulate(snn, calibration[:2], T).latency_steps
    share = 100 * snn.conversion.table().spike_driven
    run: Run = lambda x: cx.simulate(snn, x, T, at=(T,)).output  # noqa: E731
    return Converted(run, latency, share, count.energy().ratio)


METHODS: dict[str, Callable[[nn.Module, Tensor, int], Converted]] = {
    **{name: partial(ours, name) for name in RECIPES},
    **{f"quantised ANN of {name}": partial(ours, name, rounded=True) for name in RECIPES},
    STA: best_of_spikingjelly,
    TD: equal_of_spikingjelly,
}


def measured(network: str, method: str, T: int, part: str, count: int) -> Row:
    """Return the row of a method, on the first ``count`` images of a part of the data."""
    data, ann = load("fashion-mnist"), trained(network)
    tensors = data.test.tensors if part == "test" else [v[-HELD_OUT:] for v in data.train.tensors]
    images, labels = (tensor[:count] for tensor in tensors)
    right = decided(ann, images) == labels
    row = Row(network, method, T, part, len(images), 100 * float(right.double().mean()))
    try:
        converted = METHODS[method](ann, data.train.tensors[0][:CALIBRATION], T)
    except Exception as error:  # of many kinds: what others do not convert
        if method in (STA, TD):
            reason = re.sub(r" at 0x[0-9a-f]+", "", str(error).splitlines()[0])
            return replace(row, refused=f"{type(error).__name__}: {reason}")
        raise
    hit = decided(converted.run, images) == labels
    gap = right.double() - hit.double()
    half = 1.96 * float(gap.std()) / len(gap) ** 0.5
    known = {name: value for name, value in vars(converted).items() if name != "run"}
    found = {"accuracy": 100 * float(hit.double().mean()), "gap": 100 * float(gap.mean()), "interval": 100 * half}
    return replace(row, **found, **known)


def markdown(rows: Sequence[Row]) -> list[str]:
    """Return the lines of one table for each network and part."""
    lines: list[str] = []
    for network, part in dict.fromkeys((row.network, row.part) for row in rows):
        own = [row for row in rows if (row.network, row.part) == (network, part)]
        lines += ["", f"{network}, {own[0].images:,} {part} images, ANN {own[0].ann:.2f} %:", ""]
        lines += ["| method | T | accuracy, % | gap, points | latency | driven by spikes | energy |", "|---" * 7 + "|"]
        order = {name: place for place, name in enumerate(METHODS)}
        lines += [shown(row) for row in sorted(own, key=lambda row: (order[row.method], row.T))]
    return lines


def shown(row: Row) -> str:
    """Return a row of the table."""
    name = f"`{row.method}`" if row.method in RECIPES else row.method
    if row.refused:
        return f"| {name} | {row.T} | refused ({row.refused}) | | | | |"
    name += "" if row.bits is None else f", {row.bits} bits"
    rest = ("" if row.latency is None else str(row.latency), "" if row.driven is None else f"{row.driven:.1f} %",
            "" if row.energy is None else f"{row.energy:.2f}")  # fmt: skip
    figures = f"{row.accuracy:.2f} | {row.gap:.2f} ± {row.interval:.2f}"
    return f"| {name} | {row.T} | {figures} | " + " | ".join(rest) + " |"


def large(names: Sequence[str], frameworks: Sequence[str], T: int = 4) -> Iterator[str]:
    """Yield what torchvision's vit_b_16 takes, each recipe and framework in a process of its own."""
    for backend in frameworks:
        for name in names:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, context) as pool:
                yield pool.submit(cost, name, backend, T).result()


def cost(name: str, backend: str, T: int) -> str:
    """Return what vit_b_16 with random weights takes: conversion, one image in T steps, memory of this process.

    Tuners are left out: how long they take depends on the calibration data, and what they leave behind runs as fast.
    """
    from torchvision.models import vit_b_16

    torch.manual_seed(0)
    ann: Any = vit_b_16().eval()
    nn.init.normal_(ann.heads.head.weight, std=0.02)
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        ann(x)
        alone = min(_seconds(lambda: ann(x))[0] for _ in range(3))
    before = _peak()
    recipe = replace(cx.recipes.for_steps(name, T), tuners=())
    converting, snn = _seconds(partial(cx.convert, ann, x, T=T, recipe=recipe, backend=backend, progress=False))
    converted = _peak()
    run = partial(cx.simulate, snn, x, T, at=(T,))
    run()
    taken = min(_seconds(run)[0] for _ in range(2))
    return (
        f"{name}, {backend}: converted on one image in {converting / alone:.1f} x, run at T={T} in "
        f"{taken / alone:.1f} x the ANN's {alone:.2f} s of a core; peak of memory {before:.2f} GiB with the ANN alone, "
        f"{converted:.2f} GiB after the conversion, {_peak():.2f} GiB after the simulation"
    )


def _peak() -> float:
    """Return the largest resident size of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor time of a call, since the machine may be shared, and what it returned."""
    start = time.process_time()
    value = function()
    return time.process_time() - start, value


def main() -> None:
    """Compute what is missing, print the tables, and write them between the markers of a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="where finished rows are kept")
    parser.add_argument("--networks", nargs="*", default=["vit", "swin"])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--steps", nargs="*", type=int, default=list(STEPS))
    parser.add_argument("--part", choices=("held-out", "test"), default="held-out")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--limit", type=int, help="rows to compute in this run")
    parser.add_argument("--large", action="store_true", help="time and memory of vit_b_16 alone")
    parser.add_argument("--frameworks", nargs="*", default=["spikingjelly", "snntorch"], help="of --large")
    parser.add_argument("--write", type=Path, help="a file with the markers attention:begin and attention:end")
    arguments = parser.parse_args()
    if arguments.large:
        for line in large([name for name in arguments.methods if name in RECIPES], arguments.frameworks):
            print(line, flush=True)
        return
    if arguments.store is None:
        parser.error("--store FILE keeps the rows, which are many; name one.")
    lines = arguments.store.read_text().splitlines() if arguments.store.exists() else []
    rows = {row.key: row for row in (Row(**json.loads(line)) for line in lines)}
    wanted = [(n, m, T, arguments.part) for n in arguments.networks for m in arguments.methods for T in arguments.steps]
    for key in [key for key in wanted if key not in rows][: arguments.limit]:
        rows[key] = measured(*key, arguments.images)
        with arguments.store.open("a") as file:
            file.write(json.dumps(asdict(rows[key])) + "\n")
        print(shown(rows[key]), flush=True)
    table = markdown([row for row in rows.values() if row.part == arguments.part])
    print("\n".join(table))
    if arguments.write:
        before, rest = arguments.write.read_text().split(BEGIN)
        arguments.write.write_text("\n".join([before + BEGIN, *table, "", END + rest.split(END)[1]]))


if __name__ == "__main__":
    main()
