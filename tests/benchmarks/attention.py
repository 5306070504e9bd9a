"""Vision transformers with spikes into their linear layers, beside SpikingJelly's recipes for transformers.

    python -m tests.benchmarks.attention [vit swin] [--images 2000] [--part test] [--write tests/benchmarks/RESULTS.md]
    python -m tests.benchmarks.attention --cost          # torchvision's vit_b_16: time and memory

Accuracies of one network, one calibration set (256 training images) and the same images for all, with 95 % intervals of
the paired difference to the ANN. Develop with ``--part held-out``; the test images are for the figures alone.
SpikingJelly runs as its example does: the image at the first step, then zeros, outputs summed; of the scales of its
thresholds that in ``SCALES`` which is best on held-out images.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
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
RATE, WEIGHTED = (4, 8, 16, 32), (4, 8)
SCALES = (0.7, 1.0, 1.4)
Run = Callable[[Tensor], Tensor]


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


def best_of_spikingjelly(ann: nn.Module, calibration: Tensor, T: int) -> Run:
    """Return STA with the scale that is best on held-out images."""
    images, labels = (part[-HELD_OUT:][:DEVELOPED] for part in load("fashion-mnist").train.tensors)
    runs = [spikingjelly(ann, calibration, T, scale) for scale in SCALES]
    return max(runs, key=lambda run: int((decided(run, images) == labels).sum()))


def ours(ann: nn.Module, calibration: Tensor, T: int, recipe: str) -> tuple[Run, Any]:
    """Return our conversion and the network."""
    snn = cx.convert(ann, calibration, T=T, recipe=recipe, backend="reference", progress=False)
    return lambda x: cx.simulate(snn, x, T, at=(T,)).output, snn


def rows(ann: nn.Module, images: Tensor, labels: Tensor) -> Iterator[str]:
    """Yield the rows of the table of one network."""
    calibration = load("fashion-mnist").train.tensors[0][:CALIBRATION]
    right = decided(ann, images) == labels

    def row(name: str, T: Any, run: Run, rest: Sequence[str] = ("", "", "")) -> str:
        hit = decided(run, images) == labels
        gap = right.double() - hit.double()
        bound = 1.96 * float(gap.std()) / len(gap) ** 0.5
        figures = f"{100 * float(hit.double().mean()):.2f} | {100 * float(gap.mean()):.2f} ± {100 * bound:.2f}"
        return f"| {name} | {T} | {figures} | " + " | ".join(rest) + " |"

    yield f"| ANN | | {100 * float(right.double().mean()):.2f} | | | | |"
    for recipe, counts in (("default-attention", RATE), ("default-attention-weighted", WEIGHTED)):
        for T in counts:
            run, snn = ours(ann, calibration, T, recipe)
            latency = cx.simulate(snn, images[:2], T).latency_steps
            count = cx.synops(snn, images[:BATCH], T)
            ratio = count.energy().ratio
            share = f"{100 * snn.conversion.table().spike_driven:.1f} %"
            yield row(f"`{recipe}`", T, run, (str(latency), share, f"{ratio:.2f}"))
            if T in WEIGHTED:
                yield row(f"its ANN, activations rounded to {count.bits} bits", T, cx.twin(snn, T))
    theirs: list[tuple[str, int, Callable[[], Run]]] = [
        ("SpikingJelly STA, spiking encoders", 8, lambda: best_of_spikingjelly(ann, calibration, 8)),
        ("SpikingJelly STA, spiking encoders", 32, lambda: best_of_spikingjelly(ann, calibration, 32)),
        ("SpikingJelly TD (floats, no spikes)", 8, lambda: spikingjelly(ann, calibration, 8, None)),
    ]
    for name, T, convert in theirs:
        try:
            yield row(name, T, convert())
        except Exception as error:  # of many kinds: what they do not convert
            yield f"| {name} | {T} | refused: {type(error).__name__} | | | | |"


def cost(T: int = 4) -> Iterator[str]:
    """Yield what torchvision's vit_b_16 with random weights takes: conversion, one image in T steps, memory.

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
    for name in ("default-attention", "default-attention-weighted"):
        recipe = replace(cx.recipes.for_steps(name, T), tuners=())
        converting, snn = _seconds(partial(cx.convert, ann, x, T=T, recipe=recipe, backend="reference", progress=False))
        run = partial(cx.simulate, snn, x, T, at=(T,))
        run()
        taken = min(_seconds(run)[0] for _ in range(2))
        yield (
            f"{name}: converted on one image in {converting / alone:.1f} x, run at T={T} in {taken / alone:.1f} x "
            f"the ANN's {alone:.2f} s of a core; peak memory {_peak():.2f} GiB, {before:.2f} of them before"
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
    """Print the tables, and write them between the markers of a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["vit", "swin"])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--part", choices=("held-out", "test"), default="held-out")
    parser.add_argument("--cost", action="store_true", help="time and memory of vit_b_16 alone")
    parser.add_argument("--write", type=Path, help="a file with the markers attention:begin and attention:end")
    arguments = parser.parse_args()
    if arguments.cost:
        for line in cost():
            print(line, flush=True)
        return
    data = load("fashion-mnist")
    tensors = data.test.tensors if arguments.part == "test" else [v[-HELD_OUT:] for v in data.train.tensors]
    images, labels = (part[: arguments.images] for part in tensors)
    lines: list[str] = []
    for name in arguments.networks:
        lines += ["", f"{name}, {len(images)} {arguments.part} images:", ""]
        lines += ["| network | T | accuracy, % | gap, points | latency | driven by spikes | energy |", "|---" * 7 + "|"]
        print("\n".join(lines[-4:]), flush=True)
        for line in rows(trained(name), images, labels):
            lines.append(line)
            print(line, flush=True)
    if arguments.write:
        before, rest = arguments.write.read_text().split(BEGIN)
        arguments.write.write_text("\n".join([before + BEGIN, *lines, "", END + rest.split(END)[1]]))


if __name__ == "__main__":
    main()
