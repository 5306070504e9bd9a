"""The product of two matrices that both arrive as spikes or currents over time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from conversion_ext.exact import state_dtype
from conversion_ext.nn.stateful import Stateful
from conversion_ext.types import Family

__all__ = ["MatrixProduct"]

Product = Callable[[Tensor, Tensor], Tensor]


class MatrixProduct(Stateful):
    """Multiply two matrices that arrive over time: the mean of the outputs is the product of the mean inputs.

    Use it for ``query @ key^T`` and ``weights @ value`` of attention. With the sums ``A_t`` and ``B_t`` of the inputs
    so far, the product of sums grows by three terms, each of which adds rows where an input is a spike:

        P_t = P_{t-1} + a_t B_{t-1} + A_{t-1} b_t + a_t b_t = A_t B_t
        out[t] = P_t / t - P_{t-1} / (t - 1)

    hence ``sum(out) = t (A_t / t) (B_t / t)`` at every t. The output is graded. Any bilinear ``product`` will do, such
    as ``torch.bmm`` or an einsum of two operands. Call, shapes, state and errors: see ``Stateful``.

    Source: the expansion is that of spiking transformers with differential operators (Huang et al., 2024).

    Args:
        product: a function, linear in each of its two arguments, [N, ...] and [N, ...] to [N, ...].
        step_mode: ``"s"`` or ``"m"``.
    """

    inputs = 2
    state_names = ("first", "second", "total")
    first: Tensor | None
    second: Tensor | None
    total: Tensor | None

    def __init__(self, product: Product = torch.matmul, step_mode: str = "s") -> None:
        super().__init__(step_mode)
        self.product = product

    def family_out(self, *families: Family) -> Family:
        """Return GRADED."""
        return Family.GRADED

    def multi_step(self, *x_seqs: Tensor) -> Tensor:
        """Return the differences for inputs [T, N, ...]."""
        given = torch.promote_types(x_seqs[0].dtype, x_seqs[1].dtype)
        a_seq, b_seq = (x_seq.to(state_dtype(given)) for x_seq in x_seqs)
        outputs = []
        for step, (a, b) in enumerate(zip(a_seq, b_seq, strict=True), start=self.t + 1):
            outputs.append(self._step(a, b, step))
        return torch.stack(outputs).to(given)

    def _step(self, a: Tensor, b: Tensor, t: int) -> Tensor:
        """Take the inputs of step ``t`` into the sums and return the output of this step."""
        if self.first is None or self.second is None or self.total is None:
            self.first, self.second, self.total = a, b, self.product(a, b)
            return self.total / self._worth(t)
        before = self.total
        self.total = before + self.product(a, self.second + b) + self.product(self.first, b)
        self.first, self.second = self.first + a, self.second + b
        return self.total / self._worth(t) - before / self._worth(t - 1)

    def _worth(self, t: int) -> float:
        """Return what the first t steps are worth, in steps."""
        return t if self.present_pace is None else self.present_pace[t - 1]

    def extra_repr(self) -> str:
        """Return the product and the step mode, for ``print``."""
        return f"{getattr(self.product, '__name__', type(self.product).__name__)}, {super().extra_repr()}"
