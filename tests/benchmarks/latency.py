"""Accuracy at few steps, family by family, beside SpikingJelly: ``python -m tests.benchmarks.latency``.

Four networks trained on Fashion-MNIST (``train.py``). Every conversion is calibrated on 1,024 of the first 55,000
training images, drawn anew for each of ``--draws``; the gap to the ANN in points of accuracy is the mean over draws on
the same ``--images``, with its 95 % interval from the differences image by image (``±``, over images). ``--held-out``
takes the last 5,000 training images, for development, instead of test images. Every conversion is run once for each T;
SpikingJelly's do not depend on T and are read at every T of one run, plainly and delayed as its
``estimate_delay_start`` says, the better of the two at each T.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.data import load
from conversion_ext.neurons import BurstIF
from tests.benchmarks.networks import NETWORKS
from tests.benchmarks.train import HELD_OUT, trained

STEPS = (1, 2, 4, 8, 16)
CALIBRATION = 1024
BATCH = 100


@dataclass(frozen=True)
class Row:
    """One conversion at T steps; ``gaps`` [images]: right by the ANN minus right by the network, mean over draws."""

    name: str
    family: str
    T: int
    gaps: Tensor
    total_steps: int
    latency_steps: int
    spikes: float

    def __str__(self) -> str:
        mean, error = 100 * self.gaps.mean(), 196 * self.gaps.std() / len(self.gaps) ** 0.5
        spikes = "-" if self.spikes != self.spikes else f"{self.spikes:,.0f}"
        return (
            f"| {self.name} | {self.family} | {self.T} | {mean:.2f} ± {error:.2f} "
            f"| {self.total_steps} | {self.latency_steps} | {spikes} |"
        )


def recipes() -> dict[str, cx.Recipe]:
    """Return our conversions: the defaults of the families, and what they are made of."""
    default, signed, many = (cx.recipes.get(f"default{name}") for name in ("", "-signed", "-multilevel"))
    return {
        "thresholds only": replace(default, tuners=()),
        "thresholds, potentials": replace(default, tuners=default.tuners[1:]),
        "thresholds, weights": replace(default, tuners=default.tuners[:1]),
        "default": default,
        "default, K = T": replace(default, block=None),
        "default-signed": signed,
        "3 spikes per step": replace(many, neuron=BurstIF(3)),
        "3 spikes per step, signed": replace(many, neuron=BurstIF(3, signed=True)),
        "default-multilevel (15)": many,
    }


def decided(snn: nn.Module, x: Tensor, T: int) -> tuple[Tensor, cx.Simulation]:
    """Return the classes after T steps, and the last simulation for its accounts."""
    classes, spikes, run = [], 0.0, None
    for part in x.split(BATCH):
        run = cx.simulate(snn, part, T, at=(T,))
        classes.append(run.output.argmax(1))
        spikes += float(run.spikes_per_sample.sum())
    assert run is not None
    run.spikes["all"] = torch.tensor([spikes / len(x)])
    return torch.cat(classes), run


def ours(
    ann: nn.Module,
    recipe: cx.Recipe,
    draws: list[Tensor],
    x: Tensor,
    wrong: Callable[[Tensor], Tensor],
    name: str,
    T: int,
) -> Row:
    """Return the row of one of our recipes."""
    gaps, run = [], None
    for images in draws:
        snn = cx.convert(ann, list(images.split(256)), recipe=recipe, T=T, backend="reference", progress=False)
        classes, run = decided(snn, x, T)
        gaps.append(wrong(classes))
    assert run is not None
    mean = torch.stack(gaps).mean(0)
    return Row(name, str(recipe.family), T, mean, run.total_steps, run.latency_steps, float(run.spikes["all"]))


def spikingjelly() -> dict[str, Callable[[Any], Any]]:
    """Return SpikingJelly's recipes by name, as functions of the calibration batches."""
    from spikingjelly.activation_based.ann2snn import LocalThresholdBalancingRecipe, RateCodingRecipe  # noqa: PLC0415

    best: dict[str, Any] = {"channel_wise": True, "half_threshold": True}
    return {
        "SJ max": lambda data: RateCodingRecipe(data, mode="max"),
        "SJ 99.9%": lambda data: RateCodingRecipe(data, mode="99.9%"),
        "SJ 99.9%, channel, half": lambda data: RateCodingRecipe(data, mode="99.9%", **best),
        "SJ 99.9%, channel, half, pool before spikes": lambda data: RateCodingRecipe(
            data, mode="99.9%", pre_spike_maxpool=True, **best
        ),
        "SJ 99%, channel, half": lambda data: RateCodingRecipe(data, mode="99%", **best),
        "SJ LTB, 20 passes": lambda data: LocalThresholdBalancingRecipe(data * 20),
    }


def theirs(
    ann: nn.Module, make: Callable[[Any], Any], draws: list[Tensor], x: Tensor, wrong: Callable[[Tensor], Tensor],
    name: str, steps: tuple[int, ...],
) -> Iterator[Row]:  # fmt: skip
    """Yield the rows of one of SpikingJelly's recipes, the better readout of each T."""
    from spikingjelly.activation_based import functional  # noqa: PLC0415
    from spikingjelly.activation_based.ann2snn import Converter  # noqa: PLC0415

    plain, late = ({T: [] for T in steps} for _ in range(2))
    for images in draws:
        batches = [(part, torch.zeros(len(part))) for part in images.split(64)]
        snn = Converter(make(batches)).convert(ann).eval()
        starts = {T: _start(snn, images[:64], T) for T in steps}
        found: dict[tuple[bool, int], list[Tensor]] = {(d, T): [] for d in (False, True) for T in steps}
        with torch.no_grad():
            for part in x.split(BATCH):
                functional.reset_net(snn)
                outputs = torch.stack([snn(part) for _ in range(max(steps))])
                for T in steps:
                    found[False, T].append(outputs[:T].sum(0).argmax(1))
                    found[True, T].append(outputs[starts[T] : T].sum(0).argmax(1))
        for T in steps:
            plain[T].append(wrong(torch.cat(found[False, T])))
            late[T].append(wrong(torch.cat(found[True, T])))
    for T in steps:
        best = min((torch.stack(each[T]).mean(0) for each in (plain, late)), key=lambda gaps: float(gaps.mean()))
        yield Row(name, "binary", T, best, T, T, float("nan"))


def _start(snn: nn.Module, x: Tensor, T: int) -> int:
    """Return the first step that SpikingJelly's delayed readout counts."""
    from spikingjelly.activation_based import functional  # noqa: PLC0415
    from spikingjelly.activation_based.ann2snn import estimate_delay_start  # noqa: PLC0415

    functional.reset_net(snn)
    start = estimate_delay_start(snn, [x], "cpu", T)
    functional.reset_net(snn)
    return min(start, T - 1)


def main() -> None:
    """Convert, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--T", type=int, nargs="*", default=list(STEPS))
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--held-out", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Not active on the calibration data")
    data = load("fashion-mnist")
    source = [v[-HELD_OUT:] for v in data.train.tensors] if options.held_out else data.test.tensors
    x, y = (v[: options.images] for v in source)
    pool = data.train.tensors[0][:-HELD_OUT]
    draws = []
    for seed in range(options.draws):
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
        draws.append(pool[order[:CALIBRATION]])
    for network in options.networks:
        ann = trained(network)
        with torch.no_grad():
            right = torch.cat([ann(part) for part in x.split(BATCH)]).argmax(1) == y
        what = "held-out training" if options.held_out else "test"
        print(f"\n{network}: ANN {100 * right.double().mean():.2f} % on {len(y)} {what} images, {len(draws)} draws\n")
        print("| conversion | family | T | gap, points | neuron steps | latency, steps | spikes per inference |")
        print("|---|---|---|---|---|---|---|", flush=True)

        def wrong(classes: Tensor, right: Tensor = right) -> Tensor:
            return right.double() - (classes == y).double()

        for name, recipe in recipes().items():
            for T in options.T if options.only in name else ():
                print(ours(ann, recipe, draws, x, wrong, name, T), flush=True)
        for name, make in spikingjelly().items():
            if options.only in name:
                try:
                    for row in theirs(ann, make, draws, x, wrong, name, tuple(options.T)):
                        print(row, flush=True)
                except ValueError as error:
                    print(f"| {name} | refused: {str(error).splitlines()[0]} | | | | | |", flush=True)


if __name__ == "__main__":
    main()
