"""What a framework must offer, a protocol and nothing else, and the choice among those installed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from conversion_ext.errors import BackendError, StateError, UnknownNameError, require
from conversion_ext.exact import state_dtype
from conversion_ext.neurons import Heaviside, Neuron, State, advance
from conversion_ext.registry import Registry

__all__ = [
    "Backend",
    "advance_in_place",
    "available",
    "backends",
    "check_neuron",
    "check_state",
    "framework_attributes",
    "framework_subclass",
    "get_backend",
    "initial_potential",
    "initial_state",
    "is_framework_subclass",
    "is_hooked",
    "lasting",
    "learn",
    "named_surrogate",
    "register_backend",
    "state_dtype",
]

# Backends that need a package beside torch: the name is the package's, its extra's and the backend's.
FRAMEWORKS = ("spikingjelly", "snntorch")

Empty = Callable[[Tensor, torch.dtype], Tensor]
"""Gives memory of a dtype in the shape and layout of a tensor."""


class Backend(Protocol):
    """A framework seen from the conversion: it builds neurons, runs them, and wraps the finished network."""

    name: str

    def neuron(self, spec: Neuron) -> nn.Module:
        """Return the framework's own neuron module for ``spec``, unit threshold, its state reset."""
        ...

    def run(self, neuron: nn.Module, x_seq: Tensor, v_init: Tensor | float) -> Tensor:
        """Advance ``neuron`` over x_seq [T, N, ...] and return its spikes [T, N, ...] in the dtype of x_seq.

        A neuron without state starts from ``v_init`` (broadcastable to [N, ...]); state is float32 or wider.
        Raises StateError when x_seq does not fit the state in shape, dtype or device.
        """
        ...

    def state(self, neuron: nn.Module) -> State | None:
        """Return what the neuron remembers, in the order of its value's ``state``; None before its first step."""
        ...

    def set_state(self, neuron: nn.Module, state: State) -> None:
        """Make ``state`` what the neuron remembers."""
        ...

    def membrane_potential(self, neuron: nn.Module) -> Tensor | None:
        """Return the potential [N, ...] after the last reset, in units of the threshold; None without state."""
        state = self.state(neuron)
        return None if state is None else state[0]

    def reset(self, neuron: nn.Module) -> None:
        """Forget the state of this neuron and of no other."""
        ...

    def set_surrogate(self, neuron: nn.Module, surrogate: str | Heaviside | None, detach_reset: bool) -> None:
        """Let gradients through the spikes of ``neuron`` be those of ``surrogate``: a function ``z -> [z >= 0]``.

        A name is one of the framework's own, None leaves the neuron its present one. With ``detach_reset`` none flow
        through what a spike does to the state. Raises UnknownNameError, which lists the framework's names.
        """
        ...

    def root(self, base: type[nn.Module]) -> type[nn.Module]:
        """Return ``base``, the class of converted networks, as a class of the framework."""
        ...


backends: Registry[Backend] = Registry(
    "backend", lambda value: callable(getattr(value, "neuron", None)) and hasattr(value, "root"), "a Backend"
)


def register_backend(name: str, backend: Backend) -> Backend:
    """Add a backend under ``name``, after which ``convert(..., backend=name)`` finds it."""
    return backends.register(name, backend)


def available() -> list[str]:
    """Return the names of the backends that can be used here, the preferred one first; imports no framework."""
    preferred = [*FRAMEWORKS, *(name for name in backends.names() if name not in FRAMEWORKS)]
    return [name for name in preferred if _is_installed(name)]


def get_backend(name: str | None = None) -> Backend:
    """Return the backend called ``name``, by default the first that is installed.

    Raises UnknownNameError for a name nobody registered, BackendError for a framework that is not installed.
    """
    return _get_installed(available()[0] if name is None else name)


@functools.cache  # every spiking site asks at every call; a registered backend never changes
def _get_installed(name: str) -> Backend:
    backend = backends.get(name)
    require(
        _is_installed(name),
        f"The backend {name!r} needs the package {name}, which is not installed: run "
        f'pip install "conversion-ext[{name}]", or choose one of those installed: {", ".join(available())}.',
        BackendError,
    )
    return backend


def _is_installed(name: str) -> bool:
    return name not in FRAMEWORKS or importlib.util.find_spec(name) is not None


def check_neuron(spec: Neuron, backend: str) -> None:
    """Raise BackendError unless ``spec`` brings the dynamics that a backend turns into a module."""
    require(
        isinstance(spec, Neuron) and type(spec).step is not Neuron.step,
        f"The backend {backend!r} cannot build the neuron {spec!r}: use IF, SignedIF, BurstIF or SignedEncoder, or a "
        "subclass of conversion_ext.neurons.Neuron that defines step().",
        BackendError,
    )


def lasting(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return memory in the shape and layout of x: it outlives the run that makes it, and who comes next writes to it.

    What is made in inference mode cannot be written to after it.
    """
    with torch.inference_mode(False):
        return torch.empty_like(x, dtype=dtype, requires_grad=False)


def initial_potential(v_init: Tensor | float, x: Tensor, empty: Empty = lasting) -> Tensor:
    """Return ``v_init`` as a potential of its own for input x [N, ...], in memory that ``empty`` gives."""
    start = torch.as_tensor(v_init, dtype=state_dtype(x.dtype), device=x.device)
    fits = start.dim() <= x.dim() and all(
        a in (1, b) for a, b in zip(reversed(start.shape), reversed(x.shape), strict=False)
    )
    require(
        fits,
        f"The initial potential has shape {list(start.shape)}, which does not broadcast to neurons {list(x.shape)}; "
        "one per neuron fixes the size of the input.",
    )
    return empty(x, start.dtype).copy_(start)


def initial_state(spec: Neuron, v_init: Tensor | float, x: Tensor, empty: Empty = lasting) -> State:
    """Return the state of ``spec`` before its first step x [N, ...], the potential in memory that ``empty`` gives."""
    return spec.start(initial_potential(v_init, x, empty))


def advance_in_place(
    backend: Backend,
    neuron: nn.Module,
    spec: Neuron,
    x_seq: Tensor,
    v_init: Tensor | float,
    count: Tensor | None = None,
    run: Any = advance,
    empty: Empty = lasting,
    overwrite: bool = False,
) -> Tensor:
    """Fast path of ``backend.run`` for inference: update the framework's state tensors with a kernel of ours.

    Spikes and final state are bit-identical; there are no gradients, and tensors of the state may be overwritten. (The
    frameworks' forward reads and writes the state several times per step.) Spikes are added to ``count`` [N, ...].
    ``run``: ``advance`` or ``advance_compiled``. ``empty`` gives memory for a state that is begun. With
    ``overwrite`` spikes may take the place of the currents.
    """
    state = backend.state(neuron)
    if state is None:
        state = initial_state(spec, v_init, x_seq[0], empty)
        backend.set_state(neuron, state)
    else:
        check_state(state[0], x_seq[0], spec)
    step = advance if spec.learned else run  # what is learned is no constant to compile with
    spikes, new = step(spec.holding(neuron), x_seq, state, _fires, True, count, overwrite=overwrite)
    if new is not state:
        backend.set_state(neuron, new)
    return spikes


def learn(neuron: nn.Module, spec: Neuron) -> None:
    """Make parameters of ``neuron`` of what ``spec`` learns."""
    for name in spec.learned:
        neuron.register_parameter(name, nn.Parameter(torch.tensor(float(getattr(spec, name)))))


def _fires(z: Tensor) -> Tensor:
    return (z >= 0).to(z.dtype)


def named_surrogate(
    surrogate: str | Heaviside, makers: Iterable[tuple[str, Callable[..., Heaviside]]], backend: str
) -> Heaviside:
    """Return what the maker of this name makes with its defaults, or the given function itself."""
    if isinstance(surrogate, str):
        known = {
            name: make
            for name, make in makers
            if all(p.default is not p.empty for p in inspect.signature(make).parameters.values())
        }
        require(
            surrogate in known,
            f"surrogate={surrogate!r}: {backend} has {', '.join(sorted(known))}; name one of them or give a function.",
            UnknownNameError,
        )
        return known[surrogate]()
    require(
        callable(surrogate),
        f"surrogate={surrogate!r}: give a name or a function z -> [z >= 0] that has a gradient.",
        TypeError,
    )
    return surrogate


def check_state(state: Tensor, x: Tensor, what: object) -> None:
    """Raise StateError unless x [N, ...] has the shape and device of ``state``, and the dtype that goes with it.

    >>> check_state(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bfloat16), "the pool")
    """
    dtype = state_dtype(x.dtype)
    if state.shape != x.shape or state.dtype != dtype or state.device != x.device:
        raise StateError(
            f"The state of {what} is {list(state.shape)}, {state.dtype} on {state.device}, but the input asks for "
            f"{list(x.shape)}, {dtype} on {x.device}; call cx.reset(snn) before a new batch."
        )


def framework_subclass(module: str, name: str, *ours: type[nn.Module]) -> type[nn.Module]:
    """Return a class that is ``ours`` and, behind them, the class ``name`` of a framework's ``module``.

    The framework is imported now, not with this file; instances can be pickled although no file holds the class.
    The same arguments give the same class.
    """
    key = (module, name, *ours)
    if key not in _framework_subclasses:
        theirs = getattr(importlib.import_module(module), name)
        namespace = {
            "__module__": ours[0].__module__,
            "__doc__": ours[0].__doc__,
            "__reduce_ex__": lambda self, protocol: (_new_instance, key, self.__getstate__()),
        }
        _framework_subclasses[key] = type(ours[0].__name__, (*ours, theirs), namespace)
    return _framework_subclasses[key]


def is_hooked(module: nn.Module) -> bool:
    """Return whether a user registered forward hooks on ``module``, which only a call of it runs."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_framework_subclass(cls: type) -> bool:
    """Return whether ``cls`` is a class that ``framework_subclass`` made."""
    return cls in _framework_subclasses.values()


def framework_attributes(module: nn.Module) -> frozenset[str]:
    """Return the names of the attributes that ``module``, made one of a framework's, has from there."""
    key = next((key for key, cls in _framework_subclasses.items() if cls is type(module)), None)
    return frozenset() if key is None else frozenset(vars(getattr(importlib.import_module(key[0]), key[1])()))


_framework_subclasses: dict[tuple[Any, ...], type[nn.Module]] = {}


def _new_instance(module: str, name: str, *ours: type[nn.Module]) -> nn.Module:
    cls = framework_subclass(module, name, *ours)
    return cls.__new__(cls)
