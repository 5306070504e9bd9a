"""snnTorch: neurons that are ``snntorch.Leaky``, with the membrane kept after the reset."""

from __future__ import annotations

import importlib
from typing import Any, cast

import torch
from torch import Tensor, nn

from conversion_ext.backends.base import check_neuron, check_state, citizen, initial_potential, register_backend
from conversion_ext.neurons import IF, LIF, Neuron, State, advance
from conversion_ext.types import Reset

__all__ = ["SnnTorchBackend", "SnnTorchNeuron"]


def arctan(z: Tensor) -> Tensor:
    """Call snnTorch's default surrogate, ``surrogate.atan()``, which as a closure could not be pickled."""
    return importlib.import_module("snntorch.surrogate").ATan.apply(z, 2.0)


class SnnTorchNeuron(nn.Module):
    """The part of our snnTorch neurons that is not snnTorch's; ``citizen`` puts it in front of ``snntorch.Leaky``.

    Stock Leaky resets one step late, as (v + x) - 1, which differs in 4 to 12 % of spikes from v - 1 + x, and fires
    at > 1. Here ``mem`` is the potential after the reset and a spike falls at >= 1. Called with one step x [N, ...]
    it returns the step's spikes, as neurons with ``init_hidden=True`` do. It is not in ``SpikingNeuron.instances``:
    that list keeps every neuron alive, and ``snntorch.utils.reset(net)`` clears all it holds, whatever the net;
    ``reset_mem()`` or ``conversion_ext.reset(snn)`` clears this one.
    """

    mem: Tensor

    def __init__(self, spec: Neuron) -> None:
        mechanism = "zero" if isinstance(spec, IF | LIF) and spec.reset is Reset.ZERO else "subtract"
        beta = 1 - 1 / spec.tau if isinstance(spec, LIF) else 1.0
        super().__init__(beta=beta, threshold=1.0, spike_grad=arctan, init_hidden=True, reset_mechanism=mechanism)
        importlib.import_module("snntorch").SpikingNeuron.instances.remove(self)
        self.spec = spec
        for name in spec.state[1:]:
            self.register_buffer(name, None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Advance by one step."""
        # Steps one by one may be recorded by the caller, so `mem` is a new tensor at each: `advance` sees to that.
        return self.run(x.unsqueeze(0), self.spec.v_init).squeeze(0)

    def run(self, x_seq: Tensor, v_init: Tensor | float) -> Tensor:
        """Advance over x_seq [T, N, ...], from ``v_init`` where there is no state."""
        spikes, state = advance(self.spec, x_seq, self._state(x_seq[0], v_init), self.heaviside)
        for name, value in zip(("mem", *self.spec.state[1:]), state, strict=True):
            setattr(self, name, value)
        return spikes

    def _state(self, x: Tensor, v_init: Tensor | float) -> State:
        if self.has_state():
            check_state(self.mem, x, f"the neuron {self.spec}")
            return (self.mem, *(getattr(self, name) for name in self.spec.state[1:]))
        v = initial_potential(v_init, x)
        return (v, *(torch.zeros_like(v) for _ in self.spec.state[1:]))

    def heaviside(self, z: Tensor) -> Tensor:
        """Return [z >= 0] with the gradient of ``spike_grad``, whose own values are float32 and 0 at a tie."""
        spikes = (z >= 0).to(z.dtype)
        if not z.requires_grad:
            return spikes
        surrogate = cast(Any, self).spike_grad(z)
        return surrogate + (spikes - surrogate).detach()

    def has_state(self) -> bool:
        """Tell whether the neuron has run since its last reset; snnTorch's sign for "not yet" is an empty ``mem``."""
        return self.mem.shape != (0,)

    def reset_mem(self) -> Tensor:
        """Forget the state of this neuron, as snnTorch's method of that name; return the empty ``mem``."""
        self.mem = torch.zeros(0, device=self.mem.device)
        for name in self.spec.state[1:]:
            setattr(self, name, None)
        return self.mem

    def extra_repr(self) -> str:
        """Show the neuron's value."""
        return repr(self.spec)

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts without state: after a forward with gradients it is no leaf and could not be copied.
        empty: dict[str, Any] = {name: None for name in self.spec.state[1:]}
        return {**self.__dict__, "_buffers": {**self._buffers, "mem": torch.zeros(0), **empty}}


class SnnTorchBackend:
    """snnTorch 1.0."""

    name = "snntorch"

    def neuron(self, spec: Neuron) -> nn.Module:
        """Return a neuron that is a ``SnnTorchNeuron`` and a ``snntorch.Leaky``."""
        check_neuron(spec, self.name)
        return citizen("snntorch", "Leaky", SnnTorchNeuron)(spec)

    def run(self, neuron: nn.Module, x_seq: Tensor, v_init: Tensor | float) -> Tensor:
        """Advance ``neuron`` over x_seq [T, N, ...]."""
        return cast(SnnTorchNeuron, neuron).run(x_seq, v_init)

    def membrane_potential(self, neuron: nn.Module) -> Tensor | None:
        """Return the potential after the last reset."""
        neuron = cast(SnnTorchNeuron, neuron)
        return neuron.mem if neuron.has_state() else None

    def reset(self, neuron: nn.Module) -> None:
        """Forget the state."""
        cast(SnnTorchNeuron, neuron).reset_mem()

    def root(self) -> type[nn.Module]:
        """Return ``Root`` itself: snnTorch has no class for networks."""
        from conversion_ext.nn.root import Root

        return Root


register_backend("snntorch", SnnTorchBackend())
