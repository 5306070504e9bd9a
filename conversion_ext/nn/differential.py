"""Functions that are not positively homogeneous, on rate-coded inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext.errors import require
from conversion_ext.exact import running_sums, state_dtype
from conversion_ext.nn.stateful import Stateful
from conversion_ext.types import Family

__all__ = ["Differential", "differential"]

Function = Callable[..., Any]
State = tuple[tuple[Tensor | None, ...], Tensor | None]


def differential(
    function: Function, x_seqs: Sequence[Tensor], t: int, state: State, pace: Sequence[float] | None = None
) -> tuple[Tensor, State]:
    """Return ``t f(mean) - (t-1) f(previous mean)`` for the steps of ``x_seqs``, ``t`` steps after the start.

    ``state`` holds the input sums and ``t f(mean)`` after the last step. f is evaluated once for all T steps. With
    ``pace`` the first t steps count as ``pace[t - 1]`` (see ``Stateful``).
    """
    totals, previous = state
    given = reduce(torch.promote_types, (x_seq.dtype for x_seq in x_seqs))
    dtype, T = state_dtype(given), x_seqs[0].shape[0]
    sums = [running_sums(total, x_seq, dtype) for total, x_seq in zip(totals, x_seqs, strict=True)]
    counted = range(t + 1, t + T + 1) if pace is None else pace[t : t + T]
    steps = torch.tensor(counted, dtype=dtype, device=x_seqs[0].device)
    value = function(*((total / _column(steps, total)).flatten(0, 1) for total in sums))
    batch = x_seqs[0].shape[:2].numel()
    require(
        isinstance(value, Tensor) and value.shape[:1] == (batch,),
        f"The function of a Differential must return one tensor [N, ...] for inputs [N, ...], here N = {batch}; "
        f"it returned {list(value.shape) if isinstance(value, Tensor) else type(value).__name__}.",
    )
    value = value.to(dtype).unflatten(0, (T, -1))
    value = value * _column(steps, value)
    start = torch.zeros_like(value[:1]) if previous is None else previous.unsqueeze(0)
    # Clones, so that the state does not keep the whole sequence alive.
    kept = tuple(total[-1].clone() for total in sums), value[-1].clone()
    return torch.diff(value, dim=0, prepend=start).to(given), kept


class Differential(Stateful):
    """Apply ``function`` to rate-coded inputs so that the mean of the outputs is the function of the mean inputs.

    ``out[t] = t f(mean(x[1..t])) - (t-1) f(mean(x[1..t-1]))``, hence ``sum(out) = t f(mean(x))`` at every t. f maps
    [N, ...] to [N, ...] sample by sample; it sees [T*N, ...], once per call (so step modes agree to the last bit
    only where f's last bit does not depend on the batch size, as that of torch.sigmoid does). The output is graded:
    any real number at each step, whatever the spikes that come in.

    ``inputs`` is the number of input tensors, which broadcast as f lets them: squeeze-excitation is
    ``Differential(torch.mul, inputs=2)(x, gate)``. Other arguments of f are bound with ``functools.partial``.
    Weights of f narrower than float32 are widened, since t f(mean) grows with t and its rounding with it.
    Call, shapes, state and errors: see ``Stateful``.
    """

    state_names = ("totals", "previous")
    totals: tuple[Tensor | None, ...] | None
    previous: Tensor | None

    def __init__(self, function: nn.Module | Function, inputs: int = 1, step_mode: str = "s") -> None:
        require(callable(function), f"Differential({function!r}): give a function or a module.", TypeError)
        require(inputs >= 1, f"Differential(inputs={inputs!r}): it needs at least one input tensor.")
        self.inputs = inputs
        super().__init__(step_mode)
        self.function = function
        self._widen()

    def family_out(self, *families: Family) -> Family:
        """Return GRADED."""
        return Family.GRADED

    def multi_step(self, *x_seqs: Tensor) -> Tensor:
        """Return the differences for inputs [T, N, ...]."""
        state = self.totals or (None,) * self.inputs, self.previous
        y_seq, (self.totals, self.previous) = differential(self.function, x_seqs, self.t, state, self.present_pace)
        return y_seq

    def _apply(self, fn: Any, recurse: bool = True) -> Differential:
        super()._apply(fn, recurse)
        self._widen()
        return self

    def _widen(self) -> None:
        """Keep the weights of the function in float32 or wider."""
        function: Any = self.function
        if isinstance(function, nn.Module):
            weights = [*function.parameters(), *function.buffers()]
            if any(w.is_floating_point() and w.dtype != state_dtype(w.dtype) for w in weights):
                function.float()

    def extra_repr(self) -> str:
        """Return function, number of inputs and step mode, for ``print``."""
        inner = getattr(self.function, "__name__", type(self.function).__name__)
        return f"{inner}, inputs={self.inputs}, {super().extra_repr()}"


def _column(steps: Tensor, like: Tensor) -> Tensor:
    """Return ``steps`` [T] shaped to multiply a sequence [T, N, ...]."""
    return steps.view(-1, *[1] * (like.dim() - 1))
