"""Signals that arrive at different times, brought to the clock of the site that reads them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import torch
from torch import Tensor

from conversion_ext.errors import StateError
from conversion_ext.exact import state_dtype
from conversion_ext.nn.stateful import Memory
from conversion_ext.types import Steps

__all__ = ["Clock", "Delay", "LookAhead"]


class Clock(Memory):
    """Base of modules that know when the first of the ``T`` steps of their input arrives: ``lag`` ticks late.

    Called as ``module(x, Steps(T))`` with x [T*N, ...]. Whole runs pass as they are; a subclass defines what becomes of
    ticks, one at a time, and outside of the T steps nothing comes out.
    """

    def __init__(self, lag: int = 0, T: int | None = None) -> None:
        super().__init__()
        self.lag, self.T = lag, T

    def tick(self, x: Tensor) -> Tensor | None:
        """Return what comes out at the next tick, whose input is x [N, ...]; None for nothing."""
        if self.T is None:
            raise StateError(
                "A network that looks ahead has to know when its input ends, and this one was converted without T; "
                "use cx.simulate, or convert with T."
            )
        self.t += 1
        j = self.t - self.lag
        return self.step(x if 1 <= j <= self.T else None, j, self.T)

    def step(self, x: Tensor | None, j: int, T: int) -> Tensor | None:
        """Take up the input x of step j of T, None if there is no such step; return what comes out then."""
        raise NotImplementedError

    def run(self, x_seq: Tensor) -> Tensor:
        """Return the T outputs of a whole run of inputs x_seq [T, N, ...]."""
        return x_seq

    def forward(self, x: Tensor, steps: Steps) -> Tensor:
        """Return the outputs [T*N, ...] of inputs x; a mean over all steps of a run passes as it is."""
        if steps.block > 1:
            return x
        x_seq = x.unflatten(0, (steps.T, -1))
        if not steps.live:
            return self.run(x_seq).flatten(0, 1)
        ticks = ((x, self.tick(x)) for x in x_seq)
        return torch.cat([torch.zeros_like(x) if y is None else y for x, y in ticks])


class LookAhead(Clock):
    """Re-time currents: step k gets the estimate of the whole run from the inputs up to step ``j = min(T, k + d)``.

    With S_j the sum of the inputs so far and W_j what the first j of T steps are worth (``weights`` of the spikes that
    come in, None for a rate: ``W_j = j``), the total is expected to be ``Z_k = S_j W_T / W_j``. The outputs are the
    increments of ``Z_k W_k / W_T``, or of Z_k itself where ``total``; either way they add up to what came in. For
    ``d = 0`` and not ``total`` nothing changes.

    So a shortcut that arrives d steps before the main path is read d steps further: it has a fraction of its own.
    """

    state_names = ("sum", "expected")
    sum: Tensor | None
    expected: Tensor | None

    def __init__(
        self,
        d: int,
        weights: tuple[int, ...] | None = None,
        total: bool = False,
        lag: int = 0,
        T: int | None = None,
    ) -> None:
        super().__init__(lag, T)
        self.d, self.weights, self.total = d, weights, total

    @property
    def idle(self) -> bool:
        """Whether inputs leave as they come."""
        return self.d == 0 and not self.total

    def step(self, x: Tensor | None, j: int, T: int) -> Tensor | None:
        """Take up the input of step j; return the output of step j - d."""
        k = j - self.d
        if self.idle:
            return x
        if x is not None:
            wide = x.to(state_dtype(x.dtype))
            self.sum = wide if self.sum is None else self.sum + wide
        if not 1 <= k <= T:
            return None
        assert self.sum is not None
        worth = self._worth(T)
        expected = self.sum / worth[min(j, T)]
        before, now = (worth[T] * (k > 1), worth[T]) if self.total else (worth[k - 1], worth[k])
        # What follows adds nothing to what was expected rightly: a constant current comes out as it is, bit for bit.
        y = (now - before) * expected
        if self.expected is not None:
            y = y + before * (expected - self.expected)
        self.expected = expected
        return y

    def _worth(self, T: int) -> list[int]:
        return [*accumulate(self.weights or [1] * T, initial=0)]

    def run(self, x_seq: Tensor) -> Tensor:
        """Return the T outputs of a whole run of inputs x_seq [T, N, ...]."""
        return x_seq if self.idle else torch.stack([y.to(x_seq.dtype) for y in self._outputs(x_seq)])

    def _outputs(self, x_seq: Tensor) -> Iterator[Tensor]:
        self.reset()
        T = len(x_seq)
        for j in range(1, T + self.d + 1):
            y = self.step(x_seq[j - 1] if j <= T else None, j, T)
            if y is not None:
                yield y
        self.reset()

    def extra_repr(self) -> str:
        """Show the steps."""
        return f"d={self.d}, lag={self.lag}, T={self.T}" + (f", weights={self.weights}" if self.weights else "")


class Delay(Clock):
    """Hold what comes in for ``d`` ticks, as a synapse with a delay does; whole runs need none."""

    state_names = ("held",)
    held: list[Tensor] | None

    def __init__(self, d: int, lag: int = 0, T: int | None = None) -> None:
        super().__init__(lag, T)
        self.d = d

    def step(self, x: Tensor | None, j: int, T: int) -> Tensor | None:
        """Take up the input of step j; return that of step j - d."""
        held = [*(self.held or []), *([] if x is None else [x])]
        if 1 <= j - self.d <= T:
            self.held = held[1:]
            return held[0]
        self.held = held
        return None

    def extra_repr(self) -> str:
        """Show the ticks."""
        return f"d={self.d}"
