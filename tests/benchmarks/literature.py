"""Every recipe of the literature on trained networks: ``python -m tests.benchmarks.literature --store FILE --test``.

Accuracy in % after T = 1, 2, 4 ... 256 steps on ``--images`` images of Fashion-MNIST, the ANN and SpikingJelly 2.0's
recipe beside; ``steps`` are the neuron steps that the last T takes. What is tuned or trained for few steps is run up
to T = 32, anew for each T where it depends on it. The last column is one T on all 10,000 images of the test set
(``--test``; by default images held out of training are looked at, 5,000 of them).

The work is done in parts, those up to T = 32 first, then all images, then larger T. One line of JSON per finished part
goes to FILE, so that a run that was interrupted goes on; ``--limit`` ends it after so many parts. In the end a table in
markdown is printed, where what is not run yet is left empty, and with ``--plot PATH`` drawn.
``python -m tests.benchmarks.train NETWORK`` makes weights.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.data import load
from conversion_ext.normalizers import ThresholdBalancing
from tests.benchmarks.train import CHECKPOINTS, HELD_OUT, trained

BATCH, CALIBRATION = 100, 1024
LONG = tuple(2**k for k in range(9))
FEW = LONG[:6]


@dataclass(frozen=True)
class Conversion:
    """A recipe by name or value, the T it is read at, the one T of the last column, and its calibration images."""

    recipe: str | cx.Recipe
    at: tuple[int, ...] = LONG
    final: int = 16
    images: int = CALIBRATION

    @property
    def tuned(self) -> bool:
        """Whether it depends on T, so that each T is a conversion of its own."""
        recipe = self.value
        return recipe.normalizer.needs_T or any(tuner.needs_calibration for tuner in recipe.tuners)

    @property
    def value(self) -> cx.Recipe:
        """The recipe."""
        return cx.recipes.get(self.recipe) if isinstance(self.recipe, str) else self.recipe

    def decisions(self, ann: nn.Module, x: Tensor, at: Sequence[int]) -> tuple[Tensor, int]:
        """Return classes [len(at), N] after the steps ``at``, and the neuron steps of the last."""
        images = _pool()[: self.images]
        found, total = [], 0
        for steps in [(T,) for T in at] if self.tuned else [tuple(at)]:
            snn = cx.convert(ann, list(images.split(64)), recipe=self.recipe, T=steps[-1], progress=False)
            for part in x.split(BATCH):
                run = cx.simulate(snn, part, steps[-1], at=steps)
                found.append(run.outputs.argmax(-1))
                total = run.total_steps
        batches = len(x.split(BATCH))
        return torch.cat([torch.cat(found[n : n + batches], 1) for n in range(0, len(found), batches)]), total


@dataclass(frozen=True)
class SpikingJelly:
    """SpikingJelly's rate recipe, its currents averaged over time."""

    options: dict[str, Any]
    at: tuple[int, ...] = LONG
    final: int | None = None

    def decisions(self, ann: nn.Module, x: Tensor, at: Sequence[int]) -> tuple[Tensor, int]:
        """Return classes [len(at), N] after the steps ``at``, and the neuron steps of the last."""
        from tests.benchmarks.accuracy import spikingjelly  # noqa: PLC0415

        images = [(part, torch.zeros(len(part))) for part in _pool()[:CALIBRATION].split(64)]
        run = spikingjelly(ann, images, at, **self.options)
        return torch.cat([run(part).argmax(-1) for part in x.split(BATCH)], 1), at[-1]


# Each recipe on the networks that its paper is about. Tuners simulate their images layer by layer: fewer of them.
RELU: dict[str, Conversion | SpikingJelly] = {
    "`rueckauer2017`": Conversion("rueckauer2017"),
    "`hu2018`": Conversion("hu2018"),
    "`hu2018_compensated`": Conversion("hu2018_compensated", FEW[3:], 16, 128),
    "`bu2022_opi`": Conversion("bu2022_opi"),
    "`bu2025`, 20 passes": Conversion(replace(cx.recipes.get("bu2025"), normalizer=ThresholdBalancing(passes=20))),
    "`li2021`": Conversion("li2021", FEW, 8, 256),
    "`li2021_advanced`": Conversion("li2021_advanced", FEW[1::2], 8, 128),
    "`default`": Conversion("default", FEW, 8, 512),
    "SpikingJelly 99.9 %, channel, half": SpikingJelly({"mode": "99.9%", "channel_wise": True, "half_threshold": True}),
}
CONVERSIONS: dict[str, dict[str, Conversion | SpikingJelly]] = {
    "vgg": RELU,
    "resnet20": RELU,
    "vgg_plain": {f"`{name}`": Conversion(name, final=32) for name in ("cao2015", "diehl2015_model", "diehl2015_data")},
    "vgg_qcfs": {
        "`bu2022`": Conversion("bu2022", final=8),
        "`hao2023`": Conversion("hao2023", final=8),
        "`hao2023_cos`": Conversion("hao2023_cos", FEW[2:], 8),
    },
    "vgg_softlif": {"`hunsberger2016`": Conversion("hunsberger2016", LONG[6:], 80)},  # its window begins at 61
}


PARTS = ("few", "all", "long")
Key = tuple[str, str, str]
"""Network, conversion, part."""


@dataclass(frozen=True)
class Part:
    """Accuracy in [0, 1] of one conversion of one network at some T, on few or all images."""

    network: str
    conversion: str
    part: str
    accuracy: dict[int, float]
    steps: int

    @property
    def key(self) -> Key:
        """What it is part of."""
        return self.network, self.conversion, self.part

    @classmethod
    def read(cls, line: str) -> Part:
        """Return what ``write`` wrote."""
        value = json.loads(line)
        return cls(**{**value, "accuracy": {int(T): v for T, v in value["accuracy"].items()}})

    def write(self) -> str:
        """Return a line of JSON."""
        return json.dumps(asdict(self)) + "\n"


def steps_of(network: str, name: str, part: str) -> tuple[int, ...]:
    """Return the T of one part; () for none."""
    if name == "ANN":
        return (0,) if part == "all" else LONG if part == "few" else ()
    conversion = CONVERSIONS[network][name]
    if part == "all":
        return () if conversion.final is None else (conversion.final,)
    return tuple(T for T in conversion.at if (T in FEW) == (part == "few"))


def measure(key: Key, data: Sequence[Tensor]) -> Part:
    """Return one part."""
    network, name, _ = key
    ann, at = trained(network), steps_of(*key)
    if name == "ANN":
        classes, steps = torch.cat([ann(part).argmax(1) for part in data[0].split(BATCH)]).expand(len(at), -1), 1
    else:
        classes, steps = CONVERSIONS[network][name].decisions(ann, data[0], at)
    return Part(*key, dict(zip(at, (classes == data[1]).double().mean(1).tolist(), strict=True)), steps)


def _pool() -> Tensor:
    return load("fashion-mnist").train.tensors[0][:-HELD_OUT]


def markdown(done: Mapping[Key, Part], rows: Sequence[tuple[str, str]]) -> str:
    """Return the table."""
    lines = [f"| network | conversion | {' | '.join(f'T={T}' for T in LONG)} | steps | all images |"]
    lines.append("|---|---|" + "---|" * (len(LONG) + 2))
    for row in rows:
        found = [done[(*row, part)] for part in ("few", "long") if (*row, part) in done]
        accuracy = {T: v for part in found for T, v in part.accuracy.items()}
        planned = {T for part in ("few", "long") for T in steps_of(*row, part)}
        cells = [f"{100 * accuracy[T]:.1f}" if T in accuracy else "" if T in planned else "-" for T in LONG]
        steps = str(found[-1].steps) if found else ""
        last = "" if steps_of(*row, "all") else "-"
        if (*row, "all") in done:
            ((T, value),) = done[(*row, "all")].accuracy.items()
            last = f"{100 * value:.2f}" + (f" (T={T})" if T else "")
        lines.append(f"| {' | '.join((*row, *cells, steps, last))} |")
    return "\n".join(lines)


def draw(done: Mapping[Key, Part], rows: Sequence[tuple[str, str]], path: Path) -> None:
    """Draw accuracy over T, one panel per network."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    networks = list(dict.fromkeys(network for network, _ in rows))
    figure, axes = plt.subplots(1, len(networks), figsize=(4.5 * len(networks), 4), squeeze=False)
    for axis, network in zip(axes[0], networks, strict=True):
        for name in [name for of, name in rows if of == network]:
            parts = [done[network, name, part] for part in ("few", "long") if (network, name, part) in done]
            accuracy = {T: 100 * v for part in parts for T, v in part.accuracy.items()}
            style = "k--" if name == "ANN" else "x:" if "SpikingJelly" in name else "o-"
            axis.plot(list(accuracy), list(accuracy.values()), style, label=name.replace("`", ""), ms=3)
        axis.set(title=network, xlabel="T", ylabel="accuracy in %", xscale="log")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Convert, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(CONVERSIONS), help=f"of {', '.join(CONVERSIONS)}")
    parser.add_argument("--store", type=Path, required=True, help="where finished parts are kept")
    parser.add_argument("--limit", type=int, help="parts to compute in this run")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--test", action="store_true", help="on the test images")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    absent = [name for name in arguments.networks if not (CHECKPOINTS / f"{name}.pt").exists()]
    if absent:
        parser.error(f"no weights of {', '.join(absent)}: python -m tests.benchmarks.train {' '.join(absent)}")
    warnings.filterwarnings("ignore", message="Not active on the calibration data")
    warnings.filterwarnings("ignore", message="Never active with these")
    torch.set_grad_enabled(False)
    split = load("fashion-mnist")
    everything = split.test.tensors if arguments.test else [part[-HELD_OUT:] for part in split.train.tensors]
    few = [part[: arguments.images] for part in everything]
    lines = arguments.store.read_text().splitlines() if arguments.store.exists() else []
    done = {part.key: part for part in map(Part.read, lines)}
    rows = [(network, name) for network in arguments.networks for name in ("ANN", *CONVERSIONS[network])]
    missing = [(*row, part) for part in PARTS for row in rows if steps_of(*row, part) and (*row, part) not in done]
    for count, key in enumerate(missing[: arguments.limit], 1):
        done[key] = measure(key, everything if key[2] == "all" else few)
        with arguments.store.open("a") as file:
            file.write(done[key].write())
        print(f"{', '.join(key)}: {len(missing) - count} parts to go", flush=True)
    print(f"\nAccuracy in % on {len(few[1])} {'test' if arguments.test else 'held-out'} images of Fashion-MNIST\n")
    print(markdown(done, rows))
    if arguments.plot:
        draw(done, rows, arguments.plot)


if __name__ == "__main__":
    main()
