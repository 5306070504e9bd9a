"""Neurons in pure torch: the oracle that the frameworks are tested against, and a backend without dependencies."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from conversion_ext.backends.base import (
    Backend,
    check_neuron,
    check_state,
    initial_state,
    learn,
    named_surrogate,
    register_backend,
)
from conversion_ext.neurons import Heaviside as HeavisideFunction
from conversion_ext.neurons import Neuron, State, advance

__all__ = ["ReferenceBackend", "ReferenceNeuron"]


class Heaviside(torch.autograd.Function):
    """``[z >= 0]`` with the derivative of ``arctan(pi z) / pi`` (Fang et al., ICCV 2021)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        """Return 1 where z >= 0, else 0."""
        ctx.save_for_backward(z)
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        """Return the surrogate gradient."""
        (z,) = ctx.saved_tensors
        slope = torch.pi * z
        return grad_outputs[0] / slope.mul_(slope).add_(1)


def heaviside(z: Tensor) -> Tensor:
    """Return 1 where z >= 0, else 0, with a surrogate gradient."""
    return cast(Tensor, Heaviside.apply(z))


class ReferenceNeuron(nn.Module):
    """A neuron with state: called with one step x [N, ...] it returns the step's spikes."""

    def __init__(self, spec: Neuron) -> None:
        super().__init__()
        self.spec = spec
        self.state: State | None = None
        self.heaviside: HeavisideFunction = heaviside
        self.detach_reset = False
        learn(self, spec)

    def forward(self, x: Tensor) -> Tensor:
        """Advance by one step."""
        return self.run(x.unsqueeze(0), self.spec.v_init).squeeze(0)

    def run(self, x_seq: Tensor, v_init: Tensor | float) -> Tensor:
        """Advance over x_seq [T, N, ...], from ``v_init`` where there is no state."""
        if self.state is None:
            self.state = initial_state(self.spec, v_init, x_seq[0])
        else:
            check_state(self.state[0], x_seq[0], self.spec)
        spikes, self.state = advance(
            self.spec.holding(self), x_seq, self.state, self.heaviside, detach_reset=self.detach_reset
        )
        return spikes

    def extra_repr(self) -> str:
        """Show the neuron's value."""
        return repr(self.spec)

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts without state: after a forward with gradients it is no leaf and could not be copied.
        return {**self.__dict__, "state": None}


class ReferenceBackend(Backend):
    """Pure torch."""

    name = "reference"

    def neuron(self, spec: Neuron) -> ReferenceNeuron:
        """Return a ``ReferenceNeuron``."""
        check_neuron(spec, self.name)
        return ReferenceNeuron(spec)

    def run(self, neuron: nn.Module, x_seq: Tensor, v_init: Tensor | float) -> Tensor:
        """Advance ``neuron`` over x_seq [T, N, ...]."""
        return cast(ReferenceNeuron, neuron).run(x_seq, v_init)

    def state(self, neuron: nn.Module) -> State | None:
        """Return the state."""
        return cast(ReferenceNeuron, neuron).state

    def set_state(self, neuron: nn.Module, state: State) -> None:
        """Replace the state."""
        cast(ReferenceNeuron, neuron).state = state

    def reset(self, neuron: nn.Module) -> None:
        """Forget the state."""
        cast(ReferenceNeuron, neuron).state = None

    def set_surrogate(self, neuron: nn.Module, surrogate: str | HeavisideFunction | None, detach_reset: bool) -> None:
        """Set what the steps to come use."""
        own = cast(ReferenceNeuron, neuron)
        own.detach_reset = detach_reset
        if surrogate is not None:
            own.heaviside = named_surrogate(surrogate, [("atan", lambda: heaviside)], self.name)

    def root(self, base: type[nn.Module]) -> type[nn.Module]:
        """Return ``base`` itself."""
        return base


register_backend("reference", ReferenceBackend())
