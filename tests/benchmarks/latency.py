"""Accuracy at few steps, family by family, beside SpikingJelly: ``python -m tests.benchmarks.latency --store FOLDER``.

Four networks trained on Fashion-MNIST (``train.py``). A conversion is calibrated on 1,024 of the first 55,000
training images; up to 4 steps there are ``--draws`` such draws (beyond, and for multi-level spikes, where draws
differ little, one), and each of the ``--images`` is run on the network of one of them, in turn. The gap to the ANN in
points of accuracy is the mean over these images with its paired 95 % interval (``±``). ``--held-out`` takes the last
5,000 training images, for development, instead of test images. Ours are converted anew for each T; SpikingJelly's do
not depend on T and are read at every T of one run, plainly and delayed as its ``estimate_delay_start`` says, the
better of the two at each T. What takes long (SpikingJelly, 32 and 64 steps, ablations, the run to 4T) is seen on the
first ``--few`` images and one draw, and so is what it is compared with. Finished rows lie in ``--store``: the same
command goes on where it was stopped, and prints the tables of what is there.
"""

from __future__ import annotations

import argparse
import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.analysis.decomposition import decompose
from conversion_ext.data import load
from conversion_ext.neurons import BurstIF
from conversion_ext.types import Family
from tests.benchmarks.train import HELD_OUT, trained

STEPS = (1, 2, 4, 8, 16)
MORE_STEPS = (32, 64)
CALIBRATION = 1024
OUR_POOL = ", with our max-pool"
NETWORKS = ("vgg", "resnet20", "inception", "mobilenet")
BATCH = 100


@dataclass(frozen=True)
class Row:
    """One conversion at T steps; ``right`` [images] tells where it agrees with the labels."""

    name: str
    family: str
    T: int
    draws: int
    right: Tensor
    total_steps: int
    latency_steps: int
    spikes: float = float("nan")

    def __str__(self) -> str:
        spikes = "-" if self.spikes != self.spikes else f"{self.spikes:,.0f}"
        return f"{self.total_steps} | {self.latency_steps} | {spikes}"


def interval(differences: Tensor) -> str:
    """Return the mean in points with its 95 % interval over images."""
    return f"{100 * differences.mean():.2f} ± {196 * differences.std() / len(differences) ** 0.5:.2f}"


@dataclass(frozen=True)
class Bench:
    """One trained network, the images it is judged by and the draws it is calibrated on."""

    network: str
    x: Tensor
    y: Tensor
    draws: list[Tensor]
    few: int
    store: Path
    only_show: bool = False

    @cached_property
    def ann(self) -> nn.Module:
        """The trained network."""
        return trained(self.network)

    @cached_property
    def right(self) -> Tensor:
        """Where the ANN agrees with the labels, [images]."""
        with torch.no_grad():
            return torch.cat([self.ann(part) for part in self.x.split(BATCH)]).argmax(1) == self.y

    def kept(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what was computed under ``name``, by an earlier run too; None for what is only to be shown."""
        path = self.store / f"{hashlib.sha1(f'{self.network} {name}'.encode()).hexdigest()}.pt"
        if not path.exists() and self.only_show:
            return None
        if not path.exists():
            value = compute()
            torch.save(value, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
        return torch.load(path, weights_only=False)

    def convert(self, recipe: cx.Recipe, T: int, draw: int) -> nn.Module:
        """Return the network converted for T steps on one draw."""
        data = list(self.draws[draw].split(256))
        return cx.convert(self.ann, data, recipe=recipe, T=T, backend="reference", progress=False)

    def ours(self, name: str, recipe: cx.Recipe, T: int, *, few: bool) -> Row:
        """Return the row of one of our recipes."""
        draws, images = (1, self.few) if few else (len(self.draws) if T <= 4 else 1, len(self.x))
        draws = draws if recipe.family != Family.MULTI_LEVEL else 1

        def compute() -> Row:
            right, spikes, run = torch.zeros(images, dtype=torch.bool), 0.0, None
            for draw in range(draws):
                snn = self.convert(recipe, T, draw)
                x, y = self.x[:images][draw::draws], self.y[:images][draw::draws]
                classes = []
                for part in x.split(BATCH):
                    run = cx.simulate(snn, part, T, at=(T,))
                    classes.append(run.output.argmax(1))
                    spikes += float(run.spikes_per_sample.sum())
                right[draw::draws] = torch.cat(classes) == y
            assert run is not None
            return Row(name, str(recipe.family), T, draws, right, run.total_steps, run.latency_steps, spikes / images)

        return self.kept(f"{name} {T} {draws} {images}", compute)

    def longer(self, T: int) -> Tensor:
        """Return where the default recipe for T steps is right at every step from T to 4T, [steps, few]."""

        def compute() -> Tensor:
            snn = self.convert(cx.recipes.get("default"), T, 0)
            at = tuple(range(T, 4 * T + 1))
            parts = self.x[: self.few].split(BATCH)
            classes = [cx.simulate(snn, part, 4 * T, at=at).outputs.argmax(2) for part in parts]
            return torch.cat(classes, 1) == self.y[: self.few]

        return self.kept(f"to 4T {T} {self.few}", compute)

    def errors(self) -> str:
        """Return what each site of the default recipe for 4 steps loses, and by what, on a few images."""

        def compute() -> str:
            snn = self.convert(cx.recipes.get("default"), 4, 0)
            return str(decompose(snn, self.x[: min(512, self.few)], 4, ann=self.ann))

        return self.kept("errors", compute)

    def lines(self, only: str) -> dict[str, list[Row]]:
        """Return the rows of each conversion; of SpikingJelly's settings the best at each T, and with our max-pool."""
        found: dict[str, list[Row]] = {}
        theirs = self.settings(only)
        own = [rows for name, rows in theirs.items() if not name.endswith(OUR_POOL)]
        if own:
            best = [max(rows, key=lambda row: int(row.right.sum())) for rows in zip(*own, strict=True)]
            found[f"SpikingJelly, the best of {len(own)} settings at each T, binary"] = best
        found |= {f"{name}, binary": rows for name, rows in theirs.items() if name.endswith(OUR_POOL)}
        for name, (recipe, *seen) in recipes().items():
            rows = [
                row
                for f in (False, True)
                for T in seen[f]
                if only in name and (row := self.ours(name, recipe, T, few=f))
            ]
            found |= {f"{name}, {rows[0].family}": rows} if rows else {}
        return found

    def settings(self, only: str) -> dict[str, list[Row]]:
        """Return the rows of those of SpikingJelly's settings that did not refuse."""
        found = {name: self.theirs(name, *how) for name, how in spikingjelly().items() if only in "SJ"}
        return {name: rows for name, rows in found.items() if isinstance(rows, list) and rows}

    def remarks(self, only: str) -> None:
        """Print how the default recipe compares with SpikingJelly's settings, when it runs on, and what it loses by."""
        if only not in "default":
            return
        recipe, *seen = recipes()["default"]
        rows = [row for f in (False, True) for T in seen[f] if (row := self.ours("default", recipe, T, few=f))]
        ours = {row.T: row.right[: self.few].double() for row in rows}
        for name, theirs in self.settings(only).items():
            gains = [f"T={row.T} {interval(ours[row.T] - row.right.double())}" for row in theirs if row.T in ours]
            print(f"default beyond {name}: {', '.join(gains)}")
        for T in (2, 4, 8):
            if (longer := self.longer(T)) is not None:
                print(f"default for T = {T}, run on: {falls(longer.double(), T)}")
        if (errors := self.errors()) is not None:
            print(f"default for T = 4, errors relative to the activation:\n{errors}")

    def theirs(self, name: str, make: Callable[[Any], Any], pool: bool) -> list[Row] | str:
        """Return the rows of one of SpikingJelly's recipes, or why it refuses."""

        def compute() -> list[Row] | str:
            try:
                return list(self._theirs(name, make, pool))
            except ValueError as error:
                return str(error).splitlines()[0]

        return self.kept(f"{name} {self.few}", compute)

    def _theirs(self, name: str, make: Callable[[Any], Any], pool: bool) -> Iterator[Row]:
        from spikingjelly.activation_based import functional  # noqa: PLC0415
        from spikingjelly.activation_based.ann2snn import Converter  # noqa: PLC0415

        batches = [(part, torch.zeros(len(part))) for part in self.draws[0].split(64)]
        snn = Converter(make(batches)).convert(self.ann).eval()
        if pool and not _use_our_pools(snn):
            return
        steps = STEPS + MORE_STEPS
        starts = {T: _start(snn, self.draws[0][:64], T) for T in steps}
        found: dict[tuple[bool, int], list[Tensor]] = {(late, T): [] for late in (False, True) for T in steps}
        for part in self.x[: self.few].split(BATCH):
            _reset(snn)
            with torch.no_grad():
                outputs = torch.stack([snn(part) for _ in range(max(steps))])
            for T in steps:
                found[False, T].append(outputs[:T].sum(0).argmax(1))
                found[True, T].append(outputs[starts[T] : T].sum(0).argmax(1))
        functional.reset_net(snn)
        for T in steps:
            right = [torch.cat(found[late, T]) == self.y[: self.few] for late in (False, True)]
            yield Row(name, "binary", T, 1, max(right, key=lambda r: int(r.sum())), T, T)


def _reset(snn: nn.Module) -> None:
    from spikingjelly.activation_based import functional  # noqa: PLC0415

    functional.reset_net(snn)
    for module in snn.modules():
        if isinstance(module, cx.nn.SpikingMaxPool2d):
            module.reset()


def _use_our_pools(snn: nn.Module) -> bool:
    """Put exact spiking max-pools in the place of SpikingJelly's; return whether there was any."""
    pools = [(name, module) for name, module in snn.named_modules() if isinstance(module, nn.MaxPool2d)]
    for name, module in pools:
        parent, _, leaf = name.rpartition(".")
        options = {key: getattr(module, key) for key in ("stride", "padding", "dilation", "ceil_mode")}
        setattr(snn.get_submodule(parent), leaf, cx.nn.SpikingMaxPool2d(module.kernel_size, **options))
    return bool(pools)


def _start(snn: nn.Module, x: Tensor, T: int) -> int:
    """Return the first step that SpikingJelly's delayed readout counts."""
    from spikingjelly.activation_based.ann2snn import estimate_delay_start  # noqa: PLC0415

    _reset(snn)
    start = estimate_delay_start(snn, [x], "cpu", T)
    _reset(snn)
    return min(start, T - 1)


def recipes() -> dict[str, tuple[cx.Recipe, tuple[int, ...], tuple[int, ...]]]:
    """Return our conversions, each with the steps seen on all images and those seen on few."""
    default, signed, many = (cx.recipes.get(f"default{name}") for name in ("", "-signed", "-multilevel"))
    return {
        "default": (default, STEPS, MORE_STEPS),
        "default, K = T (its own twin)": (replace(default, block=None), STEPS[1:], ()),
        "default-signed": (signed, STEPS[1:], ()),
        "at most 3 spikes per step": (replace(many, neuron=BurstIF(3, signed=True)), STEPS, ()),
        "default-multilevel (15)": (many, STEPS, ()),
        "thresholds only": (replace(default, tuners=()), (), STEPS[1:4]),
        "thresholds, potentials": (replace(default, tuners=default.tuners[1:]), (), STEPS[1:4]),
        "thresholds, weights": (replace(default, tuners=default.tuners[:1]), (), STEPS[1:4]),
    }


def spikingjelly() -> dict[str, tuple[Callable[[Any], Any], bool]]:
    """Return SpikingJelly's recipes by name, as functions of the data, and whether our max-pools go into them."""
    from spikingjelly.activation_based.ann2snn import LocalThresholdBalancingRecipe, RateCodingRecipe  # noqa: PLC0415

    def rate(mode: str, **options: Any) -> Callable[[Any], Any]:
        return lambda data: RateCodingRecipe(data, mode=mode, **options)

    best: dict[str, Any] = {"channel_wise": True, "half_threshold": True}
    return {
        "SJ max": (rate("max"), False),
        "SJ 99.9%": (rate("99.9%"), False),
        "SJ 99.9%, channel, half": (rate("99.9%", **best), False),
        "SJ 99.9%, channel, half, pool before spikes": (rate("99.9%", pre_spike_maxpool=True, **best), False),
        "SJ 99%, channel, half": (rate("99%", **best), False),
        "SJ LTB, 20 passes": (lambda data: LocalThresholdBalancingRecipe(data * 20), False),
        f"SJ 99.9%, channel, half{OUR_POOL}": (rate("99.9%", **best), True),
    }


def run(benches: list[Bench], only: str) -> None:
    """Compute every row, the most telling first."""
    found = {name: value for name, value in recipes().items() if only in name}

    def ours(few: bool) -> None:
        for name, (recipe, *steps) in found.items():
            for T in steps[few]:
                for bench in benches:
                    print(bench.network, bench.ours(name, recipe, T, few=few).name, T, flush=True)

    ours(few=False)
    for bench in benches:
        for name, (make, pool) in spikingjelly().items() if only in "SJ" else ():
            bench.theirs(name, make, pool)
            print(bench.network, name, flush=True)
        if only in "default":
            bench.errors()
            for T in (2, 4, 8):
                bench.longer(T)
    ours(few=True)


def table(benches: list[Bench], only: str) -> None:
    """Print what was found, a line for each conversion, and below it what the lines do not say."""
    steps = STEPS + MORE_STEPS
    print(f"| gap, points, at |{''.join(f' T={T} |' for T in steps)} neuron steps | latency, steps | spikes |")
    print("|---" * (len(steps) + 4) + "|")
    for bench in benches:
        right = bench.right.double()
        print(f"| **{bench.network}, ANN {100 * right.mean():.2f} %** |{' |' * (len(steps) + 3)}")
        for name, found in bench.lines(only).items():
            at = {row.T: row for row in found}
            gaps = (gap(right, at[T]) if T in at else "-" for T in steps)
            print(f"| {name} | {' | '.join(gaps)} | {at.get(4, '- | - | -')} |")
    for bench in benches:
        print(f"\n{bench.network}, {100 * bench.right[: bench.few].double().mean():.2f} % on the first {bench.few}")
        bench.remarks(only)


def gap(right: Tensor, row: Row) -> str:
    """Return by how many points a row is below the ANN, with a star where it saw only few images."""
    return interval(right[: len(row.right)] - row.right.double()) + "*" * (len(row.right) < len(right))


def falls(right: Tensor, T: int) -> str:
    """Return accuracies at T, 2T and 4T, and by how much it is at most below what it was at an earlier step."""
    best, worst = right[0], right[0] - right[0]
    for now in right[1:]:
        worst = max(worst, best - now, key=lambda fall: float(fall.mean()))
        best = max(best, now, key=lambda at: float(at.mean()))
    marks = ", ".join(f"{100 * right[k * T - T].mean():.2f} at {k * T}" for k in (1, 2, 4))
    return f"{marks}; deepest fall below an earlier step {interval(worst)}"


def main() -> None:
    """Convert, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--few", type=int, default=2_000)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--store", type=Path, required=True, help="folder of finished rows, one for each setting")
    parser.add_argument("--show", action="store_true", help="print what is in the store, and compute nothing")
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
    options.store.mkdir(parents=True, exist_ok=True)
    few = min(options.few, len(x))
    benches = [Bench(network, x, y, draws, few, options.store, options.show) for network in options.networks]
    if not options.show:
        run(benches, options.only)
    table(benches, options.only)


if __name__ == "__main__":
    main()
