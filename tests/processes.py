"""One of several processes that calibrate and evaluate together; test_distributed starts them.

``python -m tests.processes <rendezvous file> <rank> <processes> <job> <output file>``
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, distributed

import conversion_ext as cx
from conversion_ext.analysis.decomposition import decompose
from conversion_ext.backends import available
from conversion_ext.training import Training
from conversion_ext.tuners import walk, weight_compensation
from tests import zoo
from tests.live import live, live_inputs

# Which batches each process has: uneven parts, and with three processes one that has none.
PARTS = {1: [[0, 1, 2, 3, 4]], 2: [[0, 2, 3], [1, 4]], 3: [[3, 0], [], [1, 4, 2]]}
NORMALIZERS = {
    "percentile": cx.Percentile(99.0, granularity=cx.PerChannel()),
    "maximum": cx.Maximum(),
    "mean_squared_error": cx.MeanSquaredError(),
    "gaussian_mse": cx.normalizers.GaussianMSE(),
}
NETWORKS = ("residual", "gated")
TUNERS = (
    cx.tuners.WeightCalibration(steps=4),
    cx.WeightCompensation(),
    cx.tuners.InitialPotential(granularity=cx.tuners.PerNeuron()),
    cx.tuners.Compensation(),
    cx.BiasCorrection(per_step=True, iterations=1),
)
TRAININGS: dict[str, dict[str, Any]] = {
    "through time": {}, "online": {"gradient": "online"}, "normalized": {"normalize": True},
}  # fmt: skip


def data(name: str) -> tuple[Any, list[tuple[Any, Any]]]:
    """Return a network and five labelled batches of uneven size."""
    ann, x = live(name, samples=25, seed=3, dtype=torch.float32)
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
    # Batches fall into parts, and of each layer not all positions are looked at.
    with (
        mock.patch.object(walk, "ROWS", 32),
        mock.patch.multiple(weight_compensation, ROWS=300, ROWS_PER_FEATURE=2),
    ):
        return _tuned(rank, processes)


def both(rank: int, processes: int) -> dict[str, Any]:
    """Return ``results`` and what ``tuned`` returns: one start of processes for the two."""
    return {"results": results(rank, processes), "tuned": tuned(rank, processes)}


def _tuned(rank: int, processes: int) -> dict[str, Any]:
    ann, batches = data("residual")
    mine = [batches[index] for index in PARTS[processes][rank]]
    recipe = cx.Recipe(cx.MeanSquaredError(), cx.IF(v_init=0.25), tuners=TUNERS)
    snn = cx.convert(ann, mine, recipe=recipe, T=8, backend="reference", fold=False, progress=False)
    found: dict[str, Any] = {key: value for key, value in snn.state_dict().items() if isinstance(value, Tensor)}
    found["errors"] = decompose(snn, mine, 8, ann=ann)
    chosen = cx.tune(ann, mine, 4, budget=1e-9, backend="reference", progress=False)
    found["chosen"] = [(c.recipe, c.score, c.latency_steps) for c in chosen.candidates], chosen.samples
    return found


@dataclass(frozen=True)
class Watched(cx.training.ThroughTime):
    """Back-propagation through time that notes the types of what is sent and of membranes."""

    noted: set[tuple[torch.dtype, torch.dtype | None]] = field(default_factory=set)

    def losses(self, network: Any, student: Any, batch: Any, objective: Any) -> Any:
        """Yield the loss."""

        def note(site: Any, args: Any, sent: Tensor) -> None:
            self.noted.add((sent.dtype, site.potential.dtype))

        hooks = [site.register_forward_hook(note) for site in student.snn.sites().values()]
        yield from super().losses(network, student, batch, objective)
        for hook in hooks:
            hook.remove()


def narrow(rank: int, processes: int) -> dict[str, Any]:
    """Return what training in bfloat16 makes in each framework, and the types of what is sent and of membranes."""
    found: dict[str, Any] = {}
    for backend in available():
        watched = Watched()
        found |= trained(rank, processes, "bf16", backend, {backend: {"gradient": watched}})
        found[f"{backend} types"] = watched.noted
    return found


def trained(
    rank: int, processes: int, precision: str = "no", backend: str = "reference", trainings: Any = None
) -> dict[str, Any]:
    """Return what training on this process's part of every batch makes; process 0 alone can write the checkpoint."""
    import accelerate

    # What torchrun tells; the group exists already, so that nothing is opened at this port.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "LOCAL_WORLD_SIZE": str(processes)}
    ann, _ = data("residual")
    x = live_inputs(ann, *zoo.IMAGE, samples=64, seed=3)
    y = (ann(x).argmax(1) + 1) % 5
    snn = cx.convert(ann, x[rank:32:processes], recipe=cx.Recipe(), T=3, backend=backend, progress=False)
    mine = slice(rank * 8 // processes, (rank + 1) * 8 // processes)
    batches = [(x[i : i + 8][mine], y[i : i + 8][mine]) for i in range(0, 64, 8)]
    found: dict[str, Any] = {}
    for name, options in (trainings or TRAININGS).items():
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
        path = Path(os.environ["CHECKPOINTS"]) / f"{name} {processes}.pt" if rank == 0 else Path("/nowhere/at all")
        result = cx.finetune(
            snn, batches[:6], validation=batches[6:], T=3, epochs=2, progress=False, **options,
            training=Training(optimizer="sgd", rate=0.02, checkpoint=path, accelerator=accelerator),
        )  # fmt: skip
        found[name] = result.history, result.best, dict(result.snn.named_parameters())
        accelerator.free_memory()
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


JOBS: dict[str, Callable[[int, int], Any]] = {
    "both": both, "trained": trained, "narrow": narrow, "troubles": troubles, "death": death,
}  # fmt: skip


def main(file: str, rank: str, processes: str, job: str, output: str) -> None:
    """Join the others, do the job, and leave its result in a file."""
    warnings.filterwarnings("ignore", "Not active on the calibration data")
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{file}", timedelta(seconds=20), world_size=int(processes), rank=int(rank)
    )
    torch.save(JOBS[job](int(rank), int(processes)), output)
    if job not in ("troubles", "death"):
        distributed.destroy_process_group()
    os._exit(0)  # at once: a group with a dead member waits for it


if __name__ == "__main__":
    main(*sys.argv[1:])
