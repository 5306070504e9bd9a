"""What a network in integers holds beside its layers: the input in levels, and potentials of a declared width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Node

from conversion_ext.errors import StateError
from conversion_ext.network.stepping import Neurons, Stepping
from conversion_ext.operators.arithmetic import Offset
from conversion_ext.operators.base import Elementwise, Operator, register_operator

__all__ = ["IntegerAffine", "IntegerInput", "IntegerStepping", "integer_affine", "integer_input"]


class IntegerInput(nn.Module):
    """Read an input as integers: ``n = round(x / unit)``, which must be in ``low ... high``.

    With ``saturate`` values beyond are taken for the nearest of the two and counted in ``overflows``.

    Raises:
        ValueError: a value beyond, without ``saturate``.
    """

    unit: Tensor

    def __init__(self, key: str, unit: Tensor, low: int, high: int, saturate: bool) -> None:
        super().__init__()
        self.key, self.low, self.high, self.saturate = key, low, high, saturate
        self.overflows = 0
        self.register_buffer("unit", unit)

    def forward(self, x: Tensor) -> Tensor:
        """Return the integers, in the dtype of x."""
        levels = (x / self.unit).round()
        held = levels.clamp(self.low, self.high)
        beyond = int((held != levels).sum())
        if beyond and not self.saturate:
            raise ValueError(
                f"The input {self.key} holds {beyond} values that are not {self.low} ... {self.high} times "
                f'{self.unit:.4g}; give integers() an x that spans all inputs, or overflow="saturate".'
            )
        self.overflows += beyond
        return held

    def extra_repr(self) -> str:
        """Show the levels."""
        return f"{self.low} ... {self.high} times {self.unit:.4g}"


class IntegerAffine(nn.Module):
    """``scale * x + shift`` entry by entry of a step: a factor, a constant that is added, a BatchNorm by itself.

    Both are integers times powers of two, ``2^-weight_exponent`` and ``2^-bias_exponent``.
    """

    scale: Tensor
    shift: Tensor
    weight_exponent: Tensor
    bias_exponent: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, weight_exponent: Tensor, bias_exponent: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.register_buffer("weight_exponent", weight_exponent)
        self.register_buffer("bias_exponent", bias_exponent)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``scale * x + shift``."""
        return self.scale * x + self.shift


class IntegerStepping(Stepping):
    """Keep potentials integers of ``bits`` bits, where the threshold is ``2^exponent``.

    Currents, multiples of ``2^-finest`` thresholds, are rounded to integers, halves up, as an adder and a shift do. An
    addition that leaves the width raises StateError, or with ``saturate`` stops at its end, ``v + z <- clamp(v + z)``,
    and is counted in ``overflows``. The neurons are those of the framework, with threshold 1: all that they are given,
    hold and compare are multiples of ``2^-exponent``, which floating point adds without error.
    """

    def __init__(self, key: str, exponent: int, finest: int, bits: int, saturate: bool) -> None:
        super().__init__()
        # floor(x + 0.5) rounds half up. Currents are multiples of 2^-finest, so adding half of that spacing changes no
        # result, and protects an inexact sum that falls just below a tie.
        self.offset = 0.5 + 2.0 ** -(max(finest - exponent, 1) + 1)
        self.key, self.exponent, self.bits, self.saturate = key, exponent, bits, saturate
        self.overflows = 0

    @property
    def threshold(self) -> int:
        """The threshold."""
        return 2**self.exponent

    def steps(self, neurons: Neurons, z_seq: Tensor) -> Tensor:
        """Return the spikes for z_seq [T, N, ...]."""
        constant = z_seq.stride(0) == 0  # one step, expanded
        rounded = (z_seq[:1] if constant else z_seq).mul(self.threshold).add_(self.offset).floor_().div_(self.threshold)
        v = self._potential(neurons, rounded[0])
        # Where the sum of all magnitudes cannot leave the width, no step can, and all run at once.
        reach = rounded[0].abs() * len(z_seq) if constant else rounded.abs().sum(0)
        largest = (2 ** (self.bits - 1) - 1) / self.threshold
        if bool((reach.add_(v.abs()) <= largest).all()):
            return neurons.run(rounded.expand(z_seq.shape))
        steps = enumerate(rounded.expand(z_seq.shape), start=self.t + 1)
        return torch.cat([self._step(neurons, z, t) for t, z in steps])

    def _potential(self, neurons: Neurons, z: Tensor) -> Tensor:
        return neurons.start(z) if neurons.potential is None else neurons.potential

    def _step(self, neurons: Neurons, z: Tensor, t: int) -> Tensor:
        v = self._potential(neurons, z)
        charged, limit = v + z, 2 ** (self.bits - 1)
        held = charged.clamp(-limit / self.threshold, (limit - 1) / self.threshold)
        beyond = int((held != charged).sum())
        if beyond and not self.saturate:
            raise StateError(
                f"{self.key}: {beyond} potentials leave the {self.bits} bits of the state at step {t}, "
                f"{charged.abs().amax():.0f} thresholds away from 0; give integers() more state_bits, or "
                'overflow="saturate".'
            )
        self.overflows += beyond
        return neurons.run((held - v)[None])

    def extra_repr(self) -> str:
        """Show the threshold and the width."""
        return f"threshold={self.threshold}, bits={self.bits}"


@register_operator(IntegerAffine)
def integer_affine(node: Node, module: nn.Module | None) -> Operator:
    """A factor and a constant in integers."""
    return Offset()


@register_operator(IntegerInput)
def integer_input(node: Node, module: nn.Module | None) -> Operator:
    """An input read as integers."""
    return Elementwise()
