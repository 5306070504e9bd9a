"""Every recipe of the literature on trained networks: ``python -m tests.benchmarks.literature [--images 1000]``.

Accuracy in % after T = 1, 2, 4 ... 256 steps on Fashion-MNIST, the ANN and SpikingJelly 2.0's recipes beside; ``steps``
are the neuron steps that T = 256 really takes. Methods that need a T are converted anew for each, up to 32. By default
on images held out of training; ``--test`` looks at the test images, ``--final T`` adds a column over all 10,000 of
them. A table in markdown and, with ``--plot``, a drawing. ``python -m tests.benchmarks.train NETWORK`` makes weights.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import conversion_ext as cx
from conversion_ext.data import load
from tests.benchmarks.accuracy import spikingjelly
from tests.benchmarks.train import CHECKPOINTS, HELD_OUT, trained

# Each recipe on the network that its paper is about.
RELU = ("rueckauer2017", "hu2018", "bu2022_opi", "li2021", "bu2025", "default", "default-signed", "default-multilevel")
RECIPES: dict[str, tuple[str, ...]] = {
    "vgg": RELU, "resnet20": RELU, "vgg_plain": ("cao2015", "diehl2015_model", "diehl2015_data"),
    "vgg_softlif": ("hunsberger2016",), "vgg_qcfs": ("bu2022", "hao2023", "hao2023_cos"),
}  # fmt: skip
# A tuner simulates its calibration data for T steps, layer by layer: fewer images, and no T that it is not meant for.
TUNED, LONGEST = 128, 32
THEIRS = {"max": {"mode": "max"}, "99.9%": {"mode": "99.9%"}}

Row = tuple[str, str, list[float], int, float | None]
"""Network, conversion, accuracy at each T, neuron steps at the last T, accuracy of the final column."""


def accuracy(
    ann: nn.Module, name: str, loader: DataLoader, data: Sequence[Tensor], at: Sequence[int]
) -> tuple[list[float], int]:
    """Return the accuracy of a recipe at each T, and the neuron steps of the last."""
    recipe = cx.recipes.get(name)
    if any(tuner.needs_calibration for tuner in recipe.tuners):
        loader = DataLoader(Subset(loader.dataset, range(TUNED)), batch_size=64)
    per_T = recipe.normalizer.needs_T or any(tuner.needs_calibration for tuner in recipe.tuners)
    found: list[float] = []
    total = 0
    for T in [T for T in at if T <= LONGEST] if per_T else at[-1:]:
        snn = cx.convert(ann, loader, recipe=recipe, T=T, progress=False)
        batches = [(x, y) for x, y in zip(data[0].split(100), data[1].split(100), strict=True)]
        result = cx.evaluate(snn, batches, T, at=(T,) if per_T else at, progress=False)
        found += result.accuracy.tolist()
        total = result.total_steps
    return found + [float("nan")] * (len(at) - len(found)), total


def rows(names: Sequence[str], data: Sequence[Tensor], at: Sequence[int], final: int | None) -> Iterator[Row]:
    """Yield one row per network and conversion."""
    split = load("fashion-mnist")
    images, labels = split.train.tensors
    loader = DataLoader(TensorDataset(images[:1024], labels[:1024]), batch_size=64)
    for name in names:
        ann = trained(name)
        right = [(ann(x).argmax(1) == y).sum() for x, y in zip(data[0].split(500), data[1].split(500), strict=True)]
        yield name, "ANN", [int(torch.stack(right).sum()) / len(data[1])] * len(at), 1, None
        for recipe in RECIPES[name]:
            found, steps = accuracy(ann, recipe, loader, data, at)
            last = None if final is None else accuracy(ann, recipe, loader, split.test.tensors, (final,))[0][0]
            yield name, recipe, found, steps, last
        for theirs, options in THEIRS.items() if name in ("vgg", "resnet20") else ():
            yield name, f"SpikingJelly {theirs}", _theirs(spikingjelly(ann, loader, at, **options), data), at[-1], None


def _theirs(run: Callable[[Tensor], Tensor], data: Sequence[Tensor]) -> list[float]:
    decided = torch.cat([run(x).argmax(2) for x in data[0].split(100)], dim=1)
    return (decided == data[1]).double().mean(1).tolist()


def draw(table: Sequence[Row], at: Sequence[int], path: Path) -> None:
    """Draw accuracy over T, one panel per network."""
    import matplotlib.pyplot as plt

    networks = list(dict.fromkeys(row[0] for row in table))
    figure, axes = plt.subplots(1, len(networks), figsize=(4.5 * len(networks), 4), squeeze=False)
    for axis, network in zip(axes[0], networks, strict=True):
        for name, conversion, found, _, _ in table:
            if name == network:
                axis.plot(at, [100 * v for v in found], "k--" if conversion == "ANN" else "o-", label=conversion)
        axis.set(title=network, xlabel="T", ylabel="accuracy in %", xscale="log")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Convert, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(RECIPES), help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--T", type=int, default=256)
    parser.add_argument("--test", action="store_true", help="on the test images")
    parser.add_argument("--final", type=int, help="a T to evaluate on all test images")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    missing = [name for name in arguments.networks if not (CHECKPOINTS / f"{name}.pt").exists()]
    if missing:
        parser.error(f"no weights of {', '.join(missing)}: python -m tests.benchmarks.train {' '.join(missing)}")
    warnings.filterwarnings("ignore", message="Not active on the calibration data")
    torch.set_grad_enabled(False)
    split = load("fashion-mnist")
    images, labels = split.test.tensors if arguments.test else (part[-HELD_OUT:] for part in split.train.tensors)
    data = images[: arguments.images], labels[: arguments.images]
    at = [2**k for k in range(arguments.T.bit_length()) if 2**k <= arguments.T]
    where = "test" if arguments.test else "held-out"
    print(f"Accuracy in % on {len(data[1])} {where} images of Fashion-MNIST")
    print("\n| network | conversion | " + " | ".join(f"T={t}" for t in at) + " | steps | all test images |")
    print("|---|---|" + "---|" * (len(at) + 2))
    table: list[Row] = []
    for row in rows(arguments.networks, data, at, arguments.final):
        name, conversion, found, steps, last = row
        cells = [f"{100 * v:.2f}" for v in found] + [str(steps), "" if last is None else f"{100 * last:.2f}"]
        print(f"| {name} | {conversion} | " + " | ".join(cells) + " |", flush=True)
        table.append(row)
    if arguments.plot:
        draw(table, at, arguments.plot)


if __name__ == "__main__":
    main()
