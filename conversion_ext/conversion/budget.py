"""What a conversion will take: a bar that knows what is still to come, and data for the seconds that are left."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.data.batches import Forward, call_inputs, model_input
from conversion_ext.data.distributed import gathered
from conversion_ext.data.inputs import tensors_of
from conversion_ext.data.progress import bar
from conversion_ext.errors import require
from conversion_ext.tuners.memory import resident
from conversion_ext.tuners.walk import OutputStop, SiteStop, SynapseStop
from conversion_ext.tuners.weight_compensation import ROWS, ROWS_PER_FEATURE

__all__ = ["FirstSamples", "Plan", "Progress", "check_budget", "first_samples"]

# In forward passes of the ANN: what observing takes, and tuning per step and beside the steps. Measured on ResNet-20.
OBSERVING, PER_STEP, REGRESSING = 2.0, 1.8, 7.0
PER_ROW = 6.0  # what a row of a regression takes for each feature, in multiply-adds: REGRESSING again, of 1,024 images
MOST = 1 << 30  # samples, more than anybody calibrates with
LEAST = 32  # samples of a tensor, which is not divided into batches


class Plan:
    """How the work of a conversion is spread over observing and the stops of a walk, in forward passes of the ANN."""

    def __init__(self, model: GraphModule, T: int | None, tuned: bool) -> None:
        self.T = T if tuned and T is not None else 0
        work = {graph.key_of(node): _work(model, node) for node in model.graph.nodes}
        whole = sum(work.values()) or 1.0
        self.share = {key: each / whole for key, each in work.items()}
        self.passes = OBSERVING + (PER_STEP * self.T + REGRESSING if tuned else 0.0)
        self.regressions = _regressions(model) if tuned else []
        self._waiting = 0.0

    def of_samples(self, n: int) -> float:
        """Return what n samples take, in forward passes of one: regressions look at so many rows and no more."""
        rows = sum(each * min(n, enough) for each, enough in self.regressions)
        return n * (OBSERVING + PER_STEP * self.T) + rows

    def samples(self, passes: float) -> int:
        """Return how many samples take at most so many ``passes`` of one, at least 1."""
        low, high = 1, MOST
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.of_samples(middle) <= passes else (low, middle - 1)
        return low

    def of(self, stop: SiteStop | SynapseStop | OutputStop) -> float:
        """Return the passes that a stop takes: a layer its regression, a site T steps of the layers before it."""
        if isinstance(stop, OutputStop):
            return 0.0
        share = self.share.get(graph.key_of(stop.node), 0.0)
        self._waiting += share
        if isinstance(stop, SynapseStop):
            return REGRESSING * share
        steps, self._waiting = self._waiting, 0.0
        return PER_STEP * self.T * steps + REGRESSING * share


def _regressions(model: GraphModule) -> list[tuple[float, float]]:
    """Return (forward passes for each sample, samples beyond which there are rows enough) of each weight layer."""
    layers = list[tuple[float, float, float]]()
    for node in model.graph.nodes:
        shape, weight = graph.info(node).shape, getattr(graph.module_of(model, node), "weight", None)
        if isinstance(shape, torch.Size) and isinstance(weight, Tensor) and weight.dim() > 1:
            width, positions = weight[0].numel(), shape[2:].numel()
            work = float(weight.numel() * positions)
            layers.append((work, PER_ROW * width * width * positions, max(ROWS, ROWS_PER_FEATURE * width) / positions))
    whole = sum(work for work, _, _ in layers)
    return [(squares / whole, enough) for _, squares, enough in layers]


def _work(model: GraphModule, node: Node) -> float:
    """Return about how many multiplications and accesses of a cache a node takes for one sample."""
    shape = graph.info(node).shape
    if not isinstance(shape, torch.Size):
        return 0.0
    weight: Any = getattr(graph.module_of(model, node), "weight", None)
    positions = shape[2:].numel() if isinstance(weight, Tensor) and weight.dim() > 2 else 1
    return 30.0 * shape.numel() + (float(weight.numel() * positions) if isinstance(weight, Tensor) else 0.0)


class Progress:
    """One bar from the first batch to the last layer; it shows the time that remains and the memory in use."""

    def __init__(self, shown: bool, passes: float) -> None:
        form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} < {remaining}{postfix}"
        self.bar = bar(None, "converting", shown, passes, bar_format=form)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()

    def add(self, passes: float) -> None:
        """Go on by what has been done."""
        taken = resident() >> 20
        if taken:
            self.bar.set_postfix_str(f"memory {taken:,} MiB", refresh=False)
        self.bar.update(min(passes, self.bar.total - self.bar.n))

    def reach(self, passes: float) -> None:
        """Go on to where so much has been done."""
        self.add(max(0.0, passes - self.bar.n))


class FirstSamples:
    """The first batches of ``data``, until there are so many samples; ``cut`` once some were left out."""

    def __init__(self, data: Iterable[Any], forward: Forward | None, samples: int) -> None:
        self.data, self.forward, self.samples, self.cut = data, forward, samples, False

    def __iter__(self) -> Iterator[Any]:
        seen = 0
        for batch in self.data:
            if seen >= self.samples:
                self.cut = True
                return
            yield batch
            seen += len(tensors_of(call_inputs(batch, self.forward))[0])


@torch.inference_mode()
def first_samples(
    data: Any, model: nn.Module, inputs: tuple[Any, ...], plan: Plan, forward: Forward | None, budget_s: float
) -> FirstSamples:
    """Return of ``data`` what a conversion of ``model`` can read in ``budget_s`` seconds.

    That is a batch at least, or LEAST samples of one tensor.
    """
    tensors = tensors_of(inputs)
    model(*tensors)  # the first call allocates
    start = time.perf_counter()
    model(*tensors)
    slowest = max(gathered((time.perf_counter() - start) / len(tensors[0])))
    samples = plan.samples(budget_s / slowest)
    return FirstSamples(_divided(data, forward, max(samples, LEAST)), forward, samples)


def _divided(data: Any, forward: Forward | None, samples: int) -> Any:
    """Return data that is one tensor, targets aside, as its first ``samples`` and the rest; other data as it is."""
    whole = model_input(data[0]) if forward is None and isinstance(data, list) and len(data) == 1 else None
    return [whole[:samples], whole[samples:]] if isinstance(whole, Tensor) and samples < len(whole) else data


def check_budget(budget_s: float | None) -> None:
    """Raise ValueError unless it is a number of seconds or None."""
    number = isinstance(budget_s, int | float) and not isinstance(budget_s, bool)
    known = budget_s is None or (number and 0 < budget_s < math.inf)
    require(known, f"budget_s={budget_s!r}: give the seconds that a conversion may take, a number > 0, or None.")
