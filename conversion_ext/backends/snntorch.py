"""snnTorch: neurons that are ``snntorch.Leaky``, with the membrane kept after the reset."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any, cast

import torch
from torch import Tensor, nn

from conversion_ext.backends.base import (
    Backend,
    check_neuron,
    check_state,
    framework_subclass,
    initial_state,
    is_hooked,
    learn,
    named_surrogate,
    register_backend,
)
from conversion_ext.neurons import IF, LIF, PLIF, Heaviside, Neuron, State, advance
from conversion_ext.types import Reset

__all__ = ["SnnTorchBackend", "SnnTorchNeuron"]


def arctan(z: Tensor) -> Tensor:
    """Call snnTorch's default surrogate, ``surrogate.atan()``, which as a closure could not be pickled."""
    return importlib.import_module("snntorch.surrogate").ATan.apply(z, 2.0)


class SnnTorchNeuron(nn.Module):
    """The part of our snnTorch neurons that is ours; ``framework_subclass`` puts it in front of ``snntorch.Leaky``.

    Stock Leaky resets one step late, as (v + x) - 1, which differs in 4 to 12 % of spikes from v - 1 + x, and fires
    at > 1. Here ``mem`` is the potential after the reset and a spike falls at >= 1. Called with one step x [N, ...]
    it returns the step's spikes, as neurons with ``init_hidden=True`` do. It is not in ``SpikingNeuron.instances``:
    that list keeps every neuron alive, and ``snntorch.utils.reset(net)`` clears all it holds, whatever the net;
    ``reset_mem()`` or ``conversion_ext.reset(snn)`` clears this one.
    """

    mem: Tensor
    detach_reset = False

    def __init__(self, spec: Neuron) -> None:
        mechanism = "zero" if isinstance(spec, IF | LIF | PLIF) and spec.reset is Reset.ZERO else "subtract"
        beta = spec.beta if isinstance(spec, PLIF) else 1 - 1 / spec.tau if isinstance(spec, LIF) else 1.0
        super().__init__(
            beta=float(beta), threshold=1.0, spike_grad=arctan, init_hidden=True, reset_mechanism=mechanism,
            learn_beta="beta" in spec.learned,
        )  # fmt: skip
        importlib.import_module("snntorch").SpikingNeuron.instances.remove(self)
        self.spec = spec
        for name in spec.state[1:]:
            self.register_buffer(name, None, persistent=False)
        learn(self, spec)

    def forward(self, x: Tensor) -> Tensor:
        """Advance by one step."""
        # Steps one by one may be recorded by the caller, so `mem` is a new tensor at each: `advance` sees to that.
        return self.run(x.unsqueeze(0), self.spec.v_init).squeeze(0)

    def run(self, x_seq: Tensor, v_init: Tensor | float) -> Tensor:
        """Advance over x_seq [T, N, ...], from ``v_init`` where there is no state."""
        state = self.state
        if state is None:
            state = initial_state(self.spec, v_init, x_seq[0])
        else:
            check_state(state[0], x_seq[0], self.spec)
        spikes, self.state = advance(
            self.spec.holding(self), x_seq, state, self.heaviside, detach_reset=self.detach_reset
        )
        return spikes

    @property
    def state(self) -> State | None:
        """What it remembers, ``mem`` first; None before the first step: snnTorch's sign is an empty ``mem``."""
        return None if self.mem.shape == (0,) else (self.mem, *(getattr(self, name) for name in self.spec.state[1:]))

    @state.setter
    def state(self, state: State) -> None:
        for name, value in zip(("mem", *self.spec.state[1:]), state, strict=True):
            setattr(self, name, value)

    def heaviside(self, z: Tensor) -> Tensor:
        """Return [z >= 0] with the gradient of ``spike_grad``, whose own values are float32 and 0 at a tie."""
        spikes = (z >= 0).to(z.dtype)
        if not z.requires_grad:
            return spikes
        surrogate = cast(Any, self).spike_grad(z)
        return surrogate + (spikes - surrogate).detach()

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


class SnnTorchNetwork(nn.Module):
    """The part of a converted network that answers to snnTorch's ways to reset one, and resets it and no other.

    ``snntorch.utils.reset(net)`` looks among the direct children of ``net`` for kinds of neurons, and then clears all
    neurons of these kinds in the process. Neurons of a converted network lie deeper and are not in its list, so the
    look itself is taken as the request.
    """

    @property
    def _modules(self) -> dict[str, nn.Module | None]:
        children = self.__dict__["_modules"]
        if sys._getframe(1).f_code.co_name == "_layer_check" and _is_snntorch(sys._getframe(1)):
            self.reset()
        return children

    @_modules.setter
    def _modules(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, value: dict[str, nn.Module | None]
    ) -> None:
        self.__dict__["_modules"] = value

    def reset(self) -> None:
        """Forget the state of every neuron and every other module with a state, at every depth."""
        for module in self.modules():
            if isinstance(module, SnnTorchNeuron):
                module.reset_mem()
            elif module is not self and hasattr(module, "reset"):
                cast(Any, module).reset()


def _is_snntorch(frame: Any) -> bool:
    return frame.f_globals.get("__name__") == "snntorch.utils"


class SnnTorchBackend(Backend):
    """snnTorch 1.0."""

    name = "snntorch"

    def neuron(self, spec: Neuron) -> nn.Module:
        """Return a neuron that is a ``SnnTorchNeuron`` and a ``snntorch.Leaky``."""
        check_neuron(spec, self.name)
        return framework_subclass("snntorch", "Leaky", SnnTorchNeuron)(spec)

    def run(self, neuron: nn.Module, x_seq: Tensor, v_init: Tensor | float) -> Tensor:
        """Advance ``neuron`` over x_seq [T, N, ...], step by step where hooks of a user are to see every step."""
        own = cast(SnnTorchNeuron, neuron)
        if not is_hooked(own):
            return own.run(x_seq, v_init)
        if own.state is None:
            own.state = initial_state(own.spec, v_init, x_seq[0])
        return torch.stack([own(x) for x in x_seq])

    def state(self, neuron: nn.Module) -> State | None:
        """Return ``mem`` and what else there is."""
        return cast(SnnTorchNeuron, neuron).state

    def set_state(self, neuron: nn.Module, state: State) -> None:
        """Replace ``mem`` and what else there is."""
        cast(SnnTorchNeuron, neuron).state = state

    def reset(self, neuron: nn.Module) -> None:
        """Forget the state."""
        cast(SnnTorchNeuron, neuron).reset_mem()

    def set_surrogate(self, neuron: nn.Module, surrogate: str | Heaviside | None, detach_reset: bool) -> None:
        """Set ``spike_grad``; names are those of the functions in ``snntorch.surrogate`` that make one."""
        own = cast(Any, neuron)
        own.detach_reset = detach_reset
        if surrogate is not None:
            module = importlib.import_module("snntorch.surrogate")
            own.spike_grad = named_surrogate(surrogate, inspect.getmembers(module, inspect.isfunction), self.name)

    def root(self, base: type[nn.Module]) -> type[nn.Module]:
        """Return ``base`` with a ``reset`` of its own, which ``snntorch.utils.reset`` calls too."""
        return framework_subclass("torch.nn", "Module", SnnTorchNetwork, base)


register_backend("snntorch", SnnTorchBackend())
