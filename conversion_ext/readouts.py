"""How the readout currents of the steps become an output."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from conversion_ext.confidence import Confidence
from conversion_ext.delay import estimate_start
from conversion_ext.errors import require
from conversion_ext.nn.stateful import accumulate, state_dtype

__all__ = [
    "Confidence",
    "FirstSpike",
    "MeanOutput",
    "MembranePotential",
    "Population",
    "Readout",
    "SpikeCount",
    "estimate_start",
]

Memory = tuple[Tensor, ...]
"""What a readout remembers, each [N, ...] in float32 or wider."""


@dataclass(frozen=True)
class Readout:
    """Base of all readouts: a fold over the steps, pure functions of what they are given.

    ``begin`` makes the memory, ``step`` takes the output x [N, ...] of step t = 1, 2, ... into it, ``decode`` gives the
    output after step t. ``spiking`` readouts need spikes, so ``convert`` puts neurons behind the last layer for them.
    """

    @property
    def spiking(self) -> bool:
        """Whether it reads spikes of output neurons, not currents."""
        return False

    def begin(self, x: Tensor) -> Memory:
        """Return the memory before the first step for outputs like ``x``: one sum."""
        return (torch.zeros_like(x, dtype=state_dtype(x.dtype)),)

    def step(self, memory: Memory, x: Tensor, t: int) -> Memory:
        """Return the memory after step ``t``; tensors of ``memory`` may be written to."""
        raise TypeError(f"{type(self).__name__} must define step().")

    def decode(self, memory: Memory, t: int) -> Tensor:
        """Return the output after step ``t``, a tensor of its own."""
        raise TypeError(f"{type(self).__name__} must define decode().")


@dataclass(frozen=True)
class MeanOutput(Readout):
    """Average the readout current over steps start+1 ... t: ``y(t) = sum / (t - start)``.

    Without a neuron behind the last layer this is the ANN's output with activations replaced by rates, in ANN
    units. Before ``start`` the output is 0. ``start > 0`` discards the transient of a deep network;
    ``cx.readouts.estimate_start`` proposes how much of it.
    """

    start: int = 0

    def __post_init__(self) -> None:
        _require_start(self)

    def step(self, memory: Memory, x: Tensor, t: int) -> Memory:
        """Add the step where it counts."""
        return (accumulate(memory[0], x),) if t > self.start else memory

    def decode(self, memory: Memory, t: int) -> Tensor:
        """Return the mean over the steps that counted."""
        return memory[0] / max(t - self.start, 1)


@dataclass(frozen=True)
class SpikeCount(Readout):
    """Count the spikes of the output neurons after step ``start``; the class is that of the most spikes.

    ``convert`` puts neurons of the recipe's kind behind the last layer, with one threshold for all classes, so counts
    compare; a class whose output is negative never spikes. Of equal counts ``argmax`` takes the first.

    Reference: Cao, Chen, Khosla, IJCV 2015; Diehl et al., IJCNN 2015.
    """

    start: int = 0

    def __post_init__(self) -> None:
        _require_start(self)

    @property
    def spiking(self) -> bool:
        """Whether it reads spikes: yes."""
        return True

    def step(self, memory: Memory, x: Tensor, t: int) -> Memory:
        """Count."""
        return (accumulate(memory[0], x.sign()),) if t > self.start else memory

    def decode(self, memory: Memory, t: int) -> Tensor:
        """Return the counts so far."""
        return memory[0].clone()


@dataclass(frozen=True)
class FirstSpike(Readout):
    """Decide for the output neuron that spikes first: the output is ``1 / t`` for a first spike at step t, 0 for none.

    So the largest output is the earliest, and ``argmax`` takes the first class of those that tie. Output neurons are
    as for :class:`SpikeCount`.

    Reference: Eshraghian et al., Proc. IEEE 2023 (latency decoding).
    """

    @property
    def spiking(self) -> bool:
        """Whether it reads spikes: yes."""
        return True

    def step(self, memory: Memory, x: Tensor, t: int) -> Memory:
        """Keep 1 / t of the first spike."""
        first = (x != 0) & (memory[0] == 0)
        return (torch.where(first, 1 / t, memory[0]),)

    def decode(self, memory: Memory, t: int) -> Tensor:
        """Return 1 / t of the first spikes so far."""
        return memory[0].clone()


@dataclass(frozen=True)
class MembranePotential(Readout):
    """Read the potential of output neurons that never fire: ``v = beta v + x`` in ANN units, from 0.

    With ``beta = 1`` that is t times :class:`MeanOutput`, so it decides alike (Rueckauer et al., 2017, their third
    softmax). A leak, ``beta < 1``, weighs late steps more, with a memory of ``1 / (1 - beta)`` steps.

    Reference: Eshraghian et al., Proc. IEEE 2023 (membrane decoding).
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.beta <= 1, f"MembranePotential(beta={self.beta!r}): what is kept of v at a step is in (0, 1].")

    def step(self, memory: Memory, x: Tensor, t: int) -> Memory:
        """Leak and charge."""
        return (accumulate(memory[0] * self.beta if self.beta < 1 else memory[0], x),)

    def decode(self, memory: Memory, t: int) -> Tensor:
        """Return the potential."""
        return memory[0].clone()


@dataclass(frozen=True)
class Population(Readout):
    """Average over the outputs of each class: [N, classes * k, ...] read by ``of`` becomes [N, classes, ...].

    Class c owns outputs c k ... c k + k - 1, as in ``snntorch.functional`` with ``population_code``.
    """

    classes: int
    of: Readout = field(default_factory=MeanOutput)

    def __post_init__(self) -> None:
        require(
            isinstance(self.classes, int) and self.classes >= 1 and isinstance(self.of, Readout),
            f"Population(classes={self.classes!r}, of={self.of!r}): give a number of classes >= 1 and a readout.",
        )

    @property
    def spiking(self) -> bool:
        """Whether it reads spikes: as ``of`` does."""
        return self.of.spiking

    def begin(self, x: Tensor) -> Memory:
        """Return the memory of ``of``; check that classes share the outputs evenly."""
        require(
            x.dim() >= 2 and x.shape[1] % self.classes == 0,
            f"Population(classes={self.classes}) cannot share outputs {list(x.shape)} evenly; the size of dimension 1 "
            "must be a multiple of the number of classes.",
        )
        return self.of.begin(x)

    def step(self, memory: Memory, x: Tensor, t: int) -> Memory:
        """Let ``of`` take the step."""
        return self.of.step(memory, x, t)

    def decode(self, memory: Memory, t: int) -> Tensor:
        """Return what ``of`` decodes, averaged per class."""
        return self.of.decode(memory, t).unflatten(1, (self.classes, -1)).mean(2)


def _require_start(readout: MeanOutput | SpikeCount) -> None:
    require(
        isinstance(readout.start, int) and readout.start >= 0,
        f"{type(readout).__name__}(start={readout.start!r}): start is the number of first steps to discard, an "
        "integer >= 0.",
    )
