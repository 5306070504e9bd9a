"""When a decision is safe: the rule by which a simulation lets go of a sample."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from conversion_ext.errors import CalibrationError, require

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Confidence"]


@dataclass(frozen=True)
class Confidence:
    """End the run of a sample whose decision is safe: ``t (y_1 - y_2) > threshold``.

    For ``simulate(..., exit=Confidence(12.0))``. y_1 and y_2 are the two largest of its decoded outputs [classes] after
    step t. With ``MeanOutput`` the left side is the margin of the first class in the sum of all outputs so far. The
    margin grows linearly with t, while the quantization error of the summed output stays bounded, so a single
    threshold works for all t. The rule is evaluated every ``every`` steps. Use :meth:`calibrate` to choose the
    threshold for a stated accuracy loss.

    Reference: Wu et al., Frontiers in Neuroscience 2025 (Top-K cutoff).
    """

    threshold: float
    every: int = 2

    def __post_init__(self) -> None:
        require(
            isinstance(self.threshold, Real) and self.threshold >= 0,
            f"Confidence(threshold={self.threshold!r}): give a number >= 0, in units of the output times steps; "
            "calibrate() finds one.",
        )
        require(
            isinstance(self.every, int) and self.every >= 1,
            f"Confidence(every={self.every!r}): give a number of steps >= 1.",
        )

    def done(self, output: Tensor, t: int) -> Tensor:
        """Return which samples [N] exit after step ``t``, for their decoded ``output`` [N, classes]."""
        return _lead(output, t) > self.threshold

    def steps(self, outputs: Tensor) -> Tensor:
        """Return the steps [N] after which samples with ``outputs`` [T, N, classes] of steps 1 ... T exit."""
        steps = torch.full(outputs.shape[1:2], len(outputs), device=outputs.device)
        for t in reversed(range(self.every, len(outputs), self.every)):
            steps[self.done(outputs[t - 1], t)] = t
        return steps

    @classmethod
    def calibrate(cls, outputs: Tensor, target: Tensor, loss: float = 0.001, every: int = 2) -> Self:
        """Return the smallest threshold by which at most a share ``loss`` of samples lose a right decision of T steps.

        ``outputs`` [T, N, classes] of steps 1 ... T, as ``simulate(snn, x, T).outputs`` gives them, and ``target``
        [N] belong to data that neither trained nor calibrated the network; ``outputs[-1].argmax(1)`` in place of
        labels makes it the share of decisions changed. Decisions that leaving early puts right are not credited.

        Of these N samples ``loss (N + 1) - 1`` lose theirs at most, one less than the share, so that ``loss`` also
        holds for other samples of the same distribution, whatever it is, on average over draws of both: the threshold
        is the k-th largest of those at which a sample leaves wrongly, and another sample's is larger with probability
        ``k / (N + 1)`` at most.

        Reference: Vovk, Gammerman, Shafer 2005 (the probability); Angelopoulos et al., ICLR 2024 (risks).
        """
        require(
            outputs.dim() == 3 and target.shape == outputs.shape[1:2] and 0 <= loss <= 1 and 1 <= every < len(outputs),
            f"Confidence.calibrate() takes outputs [T, N, classes], targets [N], a loss in [0, 1] and looks every 1 "
            f"... T-1 steps, got {list(outputs.shape)}, {list(target.shape)}, {loss!r} and {every!r}.",
            CalibrationError,
        )
        N, share = len(target), loss * (len(target) + 1) + 1e-9
        require(
            share >= 1,
            f"Confidence.calibrate(loss={loss!r}) with {N} samples: they can bound a loss of {1 / (N + 1):.2g} at "
            "best; give more of them, at least 1 / loss - 1, or a larger loss.",
            CalibrationError,
        )
        looks = torch.arange(every, len(outputs), every, device=outputs.device)
        leads, decided = _lead(outputs[looks - 1], looks[:, None]), outputs.argmax(2)
        # A sample leaves with the decision of a look for some threshold, if no look before shows a larger lead.
        lost = (decided[looks - 1] != target) & (decided[-1] == target) & (leads == leads.cummax(0).values)
        fatal = torch.where(lost, leads, 0).amax(0).sort(descending=True).values
        return cls(float(fatal[min(int(share) - 1, N - 1)]), every)


def _lead(output: Tensor, t: int | Tensor) -> Tensor:
    """Return by how much the first class leads in the sum of t outputs [..., N, classes], whose mean is ``output``."""
    best = output.topk(2, -1).values
    return t * (best[..., 0] - best[..., 1])
