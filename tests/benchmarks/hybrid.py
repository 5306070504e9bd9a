"""Convert, then fine-tune, beside its rivals: ``python -m tests.benchmarks.hybrid --rows FILE [ROW ...] [--test]``.

Networks trained on Fashion-MNIST (``train.py``), T = 1, 2, 4. Every route starts from the same trained ANN, except
training from scratch, and sees ``--images`` training images once (0: all 55,000) in batches of 32, as they are:

- ``converted``, ``converted-signed``, ``converted-waiting``: the default recipe of binary spikes, of signed ones, or of
  binary ones whose neurons wait for whole trains (``block=None``), for T and calibrated on 1,024 images, untrained;
- ``bptt``, ``signed``, ``waiting``: those, fine-tuned by ``cx.finetune`` with BatchNorm while training and the ANN as
  teacher (``TUNED``, found on held-out images); ``waiting``, which no time is left in, by ``gradient="rate"``;
- ``rate`` and every other name of a gradient: as ``bptt``, by that gradient;
- ``qcfs``: ReLUs become ``cx.nn.QCFS`` with T levels, the ANN is trained, then converted (Bu et al., 2022);
- ``scratch``: the network with random weights, converted and then trained in the same way, but as suits a beginner:
  without a teacher, and at ``SCRATCH``, the better of two learning rates.

Guards judge by 2,000 of the last 5,000 training images, which nobody learns from; accuracy is that on all 5,000 of them
or, with ``--test``, on the 10,000 test images. Seconds are of one CPU, preparation and guard included. A row is
``network:route:T:backend``; one line of JSON per finished row goes to FILE, so that a run that was interrupted goes on.
Without rows a table of FILE is printed.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import conversion_ext as cx
from conversion_ext.data import load
from conversion_ext.training import Training
from tests.benchmarks.networks import NETWORKS
from tests.benchmarks.train import HELD_OUT, accuracy, trained

BATCH, CALIBRATION, JUDGES = 32, 1024, 2000
TUNED: dict[str, Any] = {"normalize": True}
SCRATCH: dict[str, Any] = {"normalize": True, "training": Training(rate=1e-2)}

Score = Callable[[Tensor, Tensor], float]


class Data:
    """Images to learn from, to judge by, and to report on."""

    def __init__(self, images: int) -> None:
        data = load("fashion-mnist")
        x, y = data.train.tensors
        order = torch.randperm(len(x) - HELD_OUT, generator=torch.Generator().manual_seed(0))
        order = order[: images or None]
        self.train = TensorDataset(x[order], y[order])
        self.held_out = x[-HELD_OUT:], y[-HELD_OUT:]
        self.test = data.test.tensors
        self.calibration = list(x[order[:CALIBRATION]].split(256))

    def loader(self) -> DataLoader[Any]:
        """Return batches in random order."""
        return DataLoader(self.train, BATCH, shuffle=True)


def of_snn(snn: Any, T: int) -> Score:
    """Return the accuracy of a converted network as a function of images and labels."""

    def score(x: Tensor, y: Tensor) -> float:
        loader = DataLoader(TensorDataset(x, y), 250)
        return float(cx.evaluate(snn, loader, T, at=(T,), progress=False).accuracy[-1])

    return score


def converted(ann: nn.Module, data: Data, T: int, backend: str, kind: str) -> Any:
    """Return the default conversion of a kind: "signed", "waiting", or by any other name binary and causal."""
    recipe = cx.recipes.get("default-signed" if kind == "signed" else "default")
    recipe = replace(recipe, block=None) if kind == "waiting" else recipe
    return cx.convert(ann, data.calibration, recipe=recipe, T=T, backend=backend, progress=False)


def tuned(snn: Any, ann: nn.Module, data: Data, T: int, route: str) -> Any:
    """Return a conversion, or a beginner, after one pass of training."""
    judges = DataLoader(TensorDataset(*(v[:JUDGES] for v in data.held_out)), 250)
    options: dict[str, Any] = SCRATCH if route == "scratch" else TUNED | {"teacher": ann}
    gradient = {"scratch": "bptt", "signed": "bptt", "waiting": "rate"}.get(route, route)
    return cx.finetune(snn, data.loader(), T=T, validation=judges, gradient=gradient, progress=False, **options).snn


def fit(network: nn.Module, outputs: Callable[[Tensor], Tensor], data: Data, rate: float) -> None:
    """Train a network for one pass by AdamW, with the warm-up, cosine and clipping of ``cx.finetune``."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0)
    loader = data.loader()
    for step, (x, y) in enumerate(loader):
        done = step / len(loader)
        optimizer.param_groups[0]["lr"] = rate * min(done / 0.05 + 0.02, 1.0) * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.zero_grad()
        F.cross_entropy(outputs(x), y).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    network.eval()


def qcfs(ann: nn.Module, data: Data, T: int, backend: str) -> Any:
    """Return the conversion of the ANN trained with quantized activations."""
    quantized = cx.recipes.replace_relu(ann, lambda **given: cx.nn.QCFS(levels=T, **given), data.calibration)
    quantized.train()
    fit(quantized, quantized, data, 1e-3)
    return cx.convert(quantized, data.calibration, recipe="bu2022", T=T, backend=backend, progress=False)


def scratch(name: str, data: Data, T: int, backend: str) -> Any:
    """Return the conversion of an untrained network, as it is before it is trained."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cx.convert(
            NETWORKS[name]().eval(), data.calibration, recipe=cx.Recipe(), backend=backend, progress=False
        )


def run(row: str, data: Data, test: bool) -> dict[str, Any]:
    """Return what is known of a row after it was run."""
    name, route, steps, backend = row.split(":")
    T, ann, began = int(steps), trained(name), time.process_time()
    if route == "ann":
        score: Score = lambda x, y: accuracy(ann, x, y)  # noqa: E731
    elif route == "qcfs":
        score = of_snn(qcfs(copy.deepcopy(ann), data, T, backend), T)
    else:
        kind = route.removeprefix("converted-")
        snn = scratch(name, data, T, backend) if route == "scratch" else converted(ann, data, T, backend, kind)
        snn = snn if route.startswith("converted") else tuned(snn, ann, data, T, route)
        score = of_snn(snn, T)
    seconds = time.process_time() - began
    judged = score(*(data.test if test else data.held_out))
    return {"row": row, "images": len(data.train), "seconds": round(seconds), "test" if test else "held_out": judged}


def table(rows: list[dict[str, Any]]) -> str:
    """Return a table: a line for each network, route and backend, a column for each T."""
    which = "test" if all("test" in row for row in rows) else "held_out"
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        name, route, T, backend = row["row"].split(":")
        cells.setdefault((name, route, backend), {})[T] = f"{100 * row[which]:.2f} ({row['seconds']} s)"
    lines = [f"| network | route | in | T=1 | T=2 | T=4 |  {which}", "|---|---|---|---|---|---|"]
    lines += [
        f"| {' | '.join(key)} | {' | '.join(found.get(T, 'not run') for T in '124')} |" for key, found in cells.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, or print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="*", metavar="ROW")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--test", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Not active on the calibration data")
    rows = [json.loads(line) for line in options.rows.read_text().splitlines()] if options.rows.exists() else []
    missing = [row for row in options.work if row not in {done["row"] for done in rows}]
    data = Data(options.images) if missing else None
    for row in missing:
        assert data is not None
        rows.append(run(row, data, options.test))
        with options.rows.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(rows[-1], flush=True)
    if not options.work:
        print(table(rows))


if __name__ == "__main__":
    main()
