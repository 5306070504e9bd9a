"""The static limit of a spiking network: its ANN with activations rounded to what T steps can express."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from conversion_ext.data.batches import check_inputs, labelled
from conversion_ext.data.distributed import all_or_none, gathered, rank
from conversion_ext.errors import CalibrationError, require
from conversion_ext.network.spiking_network import Root
from conversion_ext.network.state import reset
from conversion_ext.network.stepping import Stepping
from conversion_ext.types import Steps

__all__ = ["Forecast", "Twin", "forecast", "twin"]


class Twin(nn.Module):
    """An ANN as accurate as the spiking network could be at T steps if every spike train were even."""

    def __init__(self, snn: Root, T: int) -> None:
        super().__init__()
        self.T = T
        self.snn = copy.deepcopy(snn)
        for site in self.snn.sites().values():
            site.spec.timed(T)
            site.stepping = Stepping()  # even trains need no correction

    def forward(self, *inputs: Any) -> Any:
        """Return the output [N, ...] in ANN units."""
        # One block after a reset: pools are plain pools then, and differential operators plain functions.
        reset(self.snn)
        return self.snn.run(inputs, Steps(1, constant=True, block=self.T))


def twin(snn: Root, T: int) -> Twin:
    """Return the ANN whose activations are the rates that ``snn``'s neurons reach in T steps of constant current.

    For soft-reset IF neurons an activation becomes ``threshold * clamp(floor(T z + v_init), 0, T) / T``, that is
    ceil(log2(T + 1)) bits; neurons that send up to k spikes at once reach T k. It has
    no time, hence no unevenness error: what it loses against the ANN is clipping and quantization, what the spiking
    network loses against it is unevenness. One forward forecasts the accuracy at T.
    """
    require(
        isinstance(snn, Root), f"snn is a {type(snn).__name__}; pass what conversion_ext.convert returned.", TypeError
    )
    require(isinstance(T, int) and T >= 1, f"T={T!r}: the number of time steps is an integer >= 1.")
    return Twin(snn, T).eval()


@dataclass(frozen=True)
class Forecast:
    """Accuracy of the twin, fractions in [0, 1], one per number of steps in ``T``."""

    T: tuple[int, ...]
    accuracy: Tensor
    samples: int


def forecast(snn: Root, loader: Any, T: Sequence[int] = (1, 2, 4, 8, 16), *, progress: bool = True) -> Forecast:
    """Return the accuracy that each number of steps can reach at best: which T do I need?

    ``loader``: a re-iterable of (input [N, ...], target [N]) batches. Every T costs one forward of the twin; the
    spiking network itself stays below, by its unevenness error.
    """
    twins = [twin(snn, steps) for steps in T]
    require(bool(twins), "T=(): name at least one number of steps.")

    def count() -> Tensor:
        right = torch.zeros(len(twins) + 1, dtype=torch.long)  # and the number of samples
        silent = not progress or rank() > 0
        for index, (x, target) in enumerate(tqdm(labelled(loader), desc="forecast", disable=silent)):
            inputs = x if isinstance(x, tuple) else (x,)
            check_inputs(inputs, snn, f"Batch {index}")
            with torch.no_grad():
                right[:-1] += torch.stack([(network(*inputs).argmax(1) == target).sum() for network in twins]).cpu()
            right[-1] += len(target)
        return right

    *right, samples = torch.stack(gathered(all_or_none(count))).sum(0)
    require(int(samples) > 0, "The loader holds no batch; pass at least one (input, target).", CalibrationError)
    return Forecast(tuple(T), torch.stack(right).double() / samples, int(samples))
