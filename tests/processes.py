"""One of several processes that calibrate and evaluate together; test_distributed starts them.

``python -m tests.processes <rendezvous file> <rank> <processes> <job> <output file>``
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

import conversion_ext as cx
from conversion_ext.tuners import walk, weight_compensation
from tests import zoo
from tests.live import live_inputs, make_live

# Which batches each process has: uneven parts, and with three processes one that has none.
PARTS = {1: [[0, 1, 2, 3, 4]], 2: [[0, 2, 3], [1, 4]], 3: [[3, 0], [], [1, 4, 2]]}
NORMALIZERS = {
    "percentile": cx.Percentile(99.0, granularity=cx.PerChannel()),
    "maximum": cx.Maximum(),
    "mean_squared_error": cx.MeanSquaredError(),
    "gaussian_mse": cx.normalizers.GaussianMSE(),
}
NETWORKS = ("residual", "gated")
TUNERS = {
    "sums": (cx.WeightCompensation(), cx.tuners.InitialPotential(), cx.BiasCorrection()),
    "steps": (
        cx.tuners.WeightCalibration(steps=6),
        cx.tuners.InitialPotential(granularity=cx.tuners.PerNeuron()),
        cx.tuners.Compensation(),
        cx.BiasCorrection(per_step=True, iterations=1),
    ),
}


def data(name: str) -> tuple[Any, list[tuple[Any, Any]]]:
    """Return a network and five labelled batches of uneven size."""
    build, shape = zoo.SMALL[name]
    torch.manual_seed(0)
    ann = make_live(build(), *shape)
    x = live_inputs(ann, *shape, samples=25, seed=3)
    return ann, list(zip(x.split([6, 4, 5, 3, 7]), ann(x).argmax(1).split([6, 4, 5, 3, 7]), strict=True))


def results(rank: int, processes: int) -> dict[str, Any]:
    """Return thresholds and evaluations for the part of the data that this process has."""
    found: dict[str, Any] = {}
    for network in NETWORKS:
        ann, batches = data(network)
        mine = [batches[index] for index in PARTS[processes][rank]]
        for name, normalizer in NORMALIZERS.items():
            snn = cx.convert(ann, mine, recipe=cx.Recipe(normalizer), T=8, backend="reference", progress=False)
            found[f"{network} {name}"] = snn.conversion.thresholds
            found[f"{network} {name} samples"] = snn.conversion.samples
        evaluation = cx.evaluate(snn, mine, 4, ann=ann, progress=False)
        found[f"{network} evaluation"] = evaluation
        found[f"{network} forecast"] = cx.forecast(snn, mine, T=(2, 4), progress=False)
    return found


def tuned(rank: int, processes: int) -> dict[str, Any]:
    """Return all weights, biases, gains, potentials and thresholds that tuners find."""
    found: dict[str, Any] = {}
    # Batches fall into parts, and of each layer not all positions are looked at.
    walk.ROWS, weight_compensation.ROWS, weight_compensation.ROWS_PER_FEATURE = 32, 300, 2
    ann, batches = data("residual")
    mine = [batches[index] for index in PARTS[processes][rank]]
    for name, tuners in TUNERS.items():
        recipe = cx.Recipe(cx.MeanSquaredError(), cx.IF(v_init=0.25), tuners=tuners)
        snn = cx.convert(ann, mine, recipe=recipe, T=8, backend="reference", fold=False, progress=False)
        found[name] = {key: value for key, value in snn.state_dict().items() if isinstance(value, Tensor)}
    chosen = cx.tune(ann, mine, 4, budget=1e-9, backend="reference", progress=False)
    found["chosen"] = [(c.recipe, c.score, c.latency_steps) for c in chosen.candidates], chosen.samples
    return found


def troubles(rank: int, processes: int) -> list[str]:
    """Return what is said to requests that cannot be served; at last, process 1 dies at its second batch."""
    ann, batches = data("residual")
    nan = [batches[0], (batches[1][0] * float("nan"), batches[1][1])]

    def said(batches: Any, **recipe: Any) -> str:
        try:
            cx.convert(ann, batches, recipe=cx.Recipe(**recipe), T=4, backend="reference", progress=False)
        except (ValueError, cx.ConversionError) as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    return [
        said(batches, normalizer=cx.normalizers.ThresholdBalancing()),
        said(nan if rank == 1 else batches),
        said(Fatal(batches) if rank == 1 else batches),
    ]


class Fatal(list[Any]):
    """Batches of which the second kills the process; the first is looked at before."""

    def __iter__(self) -> Any:
        yield self[0]
        os._exit(9)


@dataclass(frozen=True, kw_only=True)
class FatalTuner(cx.tuners.Tuner):
    """A tuner that kills the process at the first site."""

    def tune_site(self, stop: Any) -> None:
        """Die."""
        os._exit(9)


def death(rank: int, processes: int) -> str:
    """Return what is said where process 1 dies while the others tune."""
    ann, batches = data("residual")
    tuners = (FatalTuner() if rank == 1 else cx.BiasCorrection(),)
    try:
        cx.convert(ann, batches, recipe=cx.Recipe(tuners=tuners), T=4, backend="reference", progress=False)
    except cx.ConversionError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


JOBS: dict[str, Callable[[int, int], Any]] = {"results": results, "tuned": tuned, "troubles": troubles, "death": death}


def main(file: str, rank: str, processes: str, job: str, output: str) -> None:
    """Join the others, do the job, and leave its result in a file."""
    warnings.filterwarnings("ignore", "Not active on the calibration data")
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{file}", timedelta(seconds=20), world_size=int(processes), rank=int(rank)
    )
    torch.save(JOBS[job](int(rank), int(processes)), output)
    if job in ("results", "tuned"):
        distributed.destroy_process_group()
    os._exit(0)  # at once: a group with a dead member waits for it


if __name__ == "__main__":
    main(*sys.argv[1:])
