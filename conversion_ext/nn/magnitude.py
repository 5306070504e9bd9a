"""The magnitude of a rate-coded value."""

from __future__ import annotations

import torch
from torch import Tensor

from conversion_ext.exact import running_sums, state_dtype
from conversion_ext.nn.stateful import Stateful
from conversion_ext.types import Family

__all__ = ["SpikingMagnitude"]


class SpikingMagnitude(Stateful):
    """Follow the magnitude of the running sum: ``out[t] = |C[t]| - |C[t-1]|``, ``C[t] = x[1] + ... + x[t]``.

    The sum of the outputs is the magnitude of the sum of the inputs at every t, and {-1, 0, 1} stays {-1, 0, 1}. Where
    the inputs of all steps have one sign, as the random spikes of a pixel have, this is ``|x[t]|``.
    Call, shapes, state and errors: see ``Stateful``.
    """

    state_names = ("total",)
    total: Tensor | None

    def family_out(self, *families: Family) -> Family:
        """Return the family of the input: a magnitude moves by no more than its input."""
        return families[0]

    def multi_step(self, *x_seqs: Tensor) -> Tensor:
        """Return the increases for inputs [T, N, ...]."""
        (x_seq,) = x_seqs
        before = torch.zeros_like(x_seq[0], dtype=state_dtype(x_seq.dtype)) if self.total is None else self.total
        sums = running_sums(before, x_seq, before.dtype)
        self.total = sums[-1].clone()  # not to keep the whole sequence alive
        return torch.diff(sums.abs(), dim=0, prepend=before.abs()[None]).to(x_seq.dtype)
