"""Every recipe of the literature on trained networks: ``python -m tests.benchmarks.literature --rows FILE --test``.

Accuracy in % after T = 1, 2, 4 ... 256 steps on ``--images`` images of Fashion-MNIST, the ANN and SpikingJelly 2.0's
recipes beside; ``steps`` are the neuron steps that the last T takes. What is tuned or trained for few steps is run up
to T = 32, anew for each T where it depends on it. The last column is one T on all 10,000 images of the test set
(``--test``; by default images held out of training are looked at, 5,000 of them).

One line of JSON per finished row goes to FILE, so that a run that was interrupted goes on; ``--limit`` ends it after
so many rows. Where none is missing, a table in markdown is printed and, with ``--plot PATH``, drawn.
``python -m tests.benchmarks.train NETWORK`` makes weights.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
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
    "vgg_plain": {f"`{name}`": Conversion(name, final=64) for name in ("cao2015", "diehl2015_model", "diehl2015_data")},
    "vgg_qcfs": {
        "`bu2022`": Conversion("bu2022", final=8),
        "`hao2023`": Conversion("hao2023", final=8),
        "`hao2023_cos`": Conversion("hao2023_cos", FEW[2:], 8),
    },
    "vgg_softlif": {"`hunsberger2016`": Conversion("hunsberger2016", LONG[6:], 80)},  # its window begins at 61
}


@dataclass(frozen=True)
class Row:
    """Accuracy in [0, 1] of one conversion of one network at each T, and on all images at one T."""

    network: str
    conversion: str
    accuracy: dict[int, float]
    steps: int
    final: float | None = None
    final_at: int | None = None


def measure(network: str, name: str, few: Sequence[Tensor], everything: Sequence[Tensor]) -> Row:
    """Return one row."""
    ann = trained(network)
    if name == "ANN":
        right = [float((_classes(ann, x) == y).double().mean()) for x, y in (few, everything)]
        return Row(network, name, dict.fromkeys(LONG, right[0]), 1, right[1])
    conversion = CONVERSIONS[network][name]
    classes, steps = conversion.decisions(ann, few[0], conversion.at)
    accuracy = dict(zip(conversion.at, (classes == few[1]).double().mean(1).tolist(), strict=True))
    if conversion.final is None:
        return Row(network, name, accuracy, steps)
    classes, _ = conversion.decisions(ann, everything[0], (conversion.final,))
    return Row(network, name, accuracy, steps, float((classes[0] == everything[1]).double().mean()), conversion.final)


def _classes(ann: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([ann(part).argmax(1) for part in x.split(BATCH)])


def _pool() -> Tensor:
    return load("fashion-mnist").train.tensors[0][:-HELD_OUT]


def markdown(rows: Sequence[Row], at: Sequence[int]) -> str:
    """Return the table."""
    lines = [f"| network | conversion | {' | '.join(f'T={T}' for T in at)} | steps | all images |"]
    lines.append("|---|---|" + "---|" * (len(at) + 2))
    for row in rows:
        cells = [f"{100 * row.accuracy[T]:.1f}" if T in row.accuracy else "-" for T in at]
        last = "-" if row.final is None else f"{100 * row.final:.2f}"
        last += f" (T={row.final_at})" if row.final_at else ""
        lines.append(f"| {row.network} | {row.conversion} | {' | '.join(cells)} | {row.steps} | {last} |")
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy over T, one panel per network."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    networks = list(dict.fromkeys(row.network for row in rows))
    figure, axes = plt.subplots(1, len(networks), figsize=(4.5 * len(networks), 4), squeeze=False)
    for axis, network in zip(axes[0], networks, strict=True):
        for row in rows:
            if row.network == network:
                style = "k--" if row.conversion == "ANN" else "x:" if "SpikingJelly" in row.conversion else "o-"
                label = row.conversion.replace("`", "")
                axis.plot(list(row.accuracy), [100 * v for v in row.accuracy.values()], style, label=label, ms=3)
        axis.set(title=network, xlabel="T", ylabel="accuracy in %", xscale="log")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Convert, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(CONVERSIONS), help=f"of {', '.join(CONVERSIONS)}")
    parser.add_argument("--rows", type=Path, required=True, help="where finished rows are kept")
    parser.add_argument("--limit", type=int, help="rows to compute in this run")
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
    lines = arguments.rows.read_text().splitlines() if arguments.rows.exists() else []
    done = {(row["network"], row["conversion"]): row for row in map(json.loads, lines)}
    wanted = [(network, name) for network in arguments.networks for name in ("ANN", *CONVERSIONS[network])]
    missing = [key for key in wanted if key not in done]
    for network, name in islice(missing, arguments.limit):
        done[network, name] = asdict(measure(network, name, few, everything))
        with arguments.rows.open("a") as file:
            file.write(json.dumps(done[network, name]) + "\n")
        print(f"{network}, {name}: {sum(key not in done for key in wanted)} rows to go", flush=True)
    if all(key in done for key in wanted):
        rows = [
            Row(**{**done[key], "accuracy": {int(T): v for T, v in done[key]["accuracy"].items()}}) for key in wanted
        ]
        print(f"Accuracy in % on {len(few[1])} {'test' if arguments.test else 'held-out'} images of Fashion-MNIST\n")
        print(markdown(rows, LONG))
        if arguments.plot:
            draw(rows, arguments.plot)


if __name__ == "__main__":
    main()
