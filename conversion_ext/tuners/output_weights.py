"""Weights of the steps in the mean output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from conversion_ext.tuners.base import Tuner, register_tuner
from conversion_ext.tuners.walk import OutputStop, SiteStop, SynapseStop

__all__ = ["OutputWeights"]

SAMPLES = 512  # tell a weight for each step as well as all do
RIDGE = 1e-3  # of the mean squared error of a step: without data to tell them apart, steps weigh alike


@dataclass(frozen=True, kw_only=True)
class OutputWeights(Tuner):
    """Weigh the steps of the output: ``min sum_n |sum_k w_k o_k - z|^2`` with ``w >= 0, sum_k w_k = 1``.

    o_k is the output of step k for constant input, z the output of the ANN. In a deep network the
    first steps see little of the input, the last ones most. Use it at the end of a recipe that reads
    ``MeanOutput()`` at small T: it changes no spike, costs T numbers beside the network, and where steps are alike,
    as with more of them, weights are, too. Only the readout of the conversion is changed. Outputs of frames are left
    as they are, since there each step has an input of its own.

    Reference: least squares under a sum, as for the combination of forecasts (Bates, Granger, 1969).
    """

    def tune_output(self, stop: OutputStop) -> None:
        """Find the weights of the steps."""
        errors = self._errors(stop)
        size = errors.trace() / len(errors)
        if not 0 < float(size) < torch.inf:
            return  # no step errs, or there is no number to weigh them by
        errors += RIDGE * size * torch.eye(len(errors), dtype=errors.dtype)
        used = torch.ones(len(errors), dtype=torch.bool)
        weights = torch.zeros(len(errors), dtype=errors.dtype)
        while True:  # steps that would weigh less than nothing are left out, one by one
            part = torch.linalg.solve(errors[used][:, used], torch.ones(int(used.sum()), dtype=errors.dtype))
            weights = weights.zero_().masked_scatter(used, part / part.sum())
            if float(weights.min()) >= 0:
                break
            used[weights.argmin()] = False
        if float(weights[-1]) > 0:  # which stands for later steps
            stop.weights = tuple(weights.tolist())

    def objective(self, stop: SiteStop | SynapseStop | OutputStop) -> Tensor | None:
        """Return the squared error of the output."""
        if not isinstance(stop, OutputStop):
            return None
        errors = self._errors(stop)
        weights = errors.new_tensor(stop.weights or [1 / len(errors)] * len(errors))
        return weights @ errors @ weights

    def _errors(self, stop: OutputStop) -> Tensor:
        """Return the products of the errors of every two steps, summed over samples, [T, T]."""

        def products(part: int) -> tuple[Tensor]:
            errors = (stop.outputs(part) - stop.target(part)).flatten(1).double()
            return (errors @ errors.T,)

        (total,) = stop.exact_sum(products, stop.sample(SAMPLES, 1))
        return total.cpu()


register_tuner("output_weights", OutputWeights)
