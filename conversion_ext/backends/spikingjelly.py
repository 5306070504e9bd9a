"""SpikingJelly 2.0 and 0.0.0.0.14: its IFNode, LIFNode and ParametricLIFNode, and nodes of its kind for all else."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from conversion_ext.backends.base import (
    Backend,
    check_neuron,
    check_state,
    framework_subclass,
    initial_potential,
    initial_state,
    learn,
    named_surrogate,
    register_backend,
    state_dtype,
)
from conversion_ext.neurons import IF, LIF, PLIF, Heaviside, Neuron, State, advance
from conversion_ext.types import Reset

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "SpikingJellyBackend",
    "SpikingJellyNetwork",
    "SpikingJellyNode",
    "call",
    "choose_kernel",
    "make_memory_module",
]

M = TypeVar("M", bound=nn.Module)
BASE = "spikingjelly.activation_based.base"
NEURON = "spikingjelly.activation_based.neuron"


def _framework(part: str) -> Any:
    return importlib.import_module(f"spikingjelly.activation_based.{part}")


class SpikingJellyNode(nn.Module):
    """The part of our SpikingJelly nodes that is ours; ``framework_subclass`` puts it before ``MemoryModule``.

    ``STBIFNode`` of 2.0 (scale 1, levels from 0 to infinity) gives the same spikes as SignedIF, bit for bit, but
    refuses inputs that require gradients, and 0.0.0.0.14 has none. ``TernaryIFNode`` fires at +-1, an encoder at
    +-1/2. State variables are registered memories, floats while there is no state, as in stock nodes.
    """

    step_mode: str

    def __init__(self, spec: Neuron) -> None:
        super().__init__()
        self.spec = spec
        self.surrogate_function = _framework("surrogate").ATan()
        self.detach_reset = False
        for name in spec.state:
            cast(Any, self).register_memory(name, float(spec.v_init) if name == spec.state[0] else 0.0)
        learn(self, spec)

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Advance by one step x [N, ...]."""
        return self.multi_step_forward(x.unsqueeze(0)).squeeze(0)

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Advance over x_seq [T, N, ...]."""
        state: State = tuple(getattr(self, name) for name in self.spec.state)
        if isinstance(state[0], float) or any(isinstance(value, float) for value in state[1:]):  # not a step yet
            state = initial_state(self.spec, state[0], x_seq[0])
        check_state(state[0], x_seq[0], self.spec)
        spikes, state = advance(
            self.spec.holding(self), x_seq, state, self.surrogate_function, detach_reset=self.detach_reset
        )
        for name, value in zip(self.spec.state, state, strict=True):
            setattr(self, name, value)
        return spikes

    def extra_repr(self) -> str:
        """Show the neuron's value and the step mode."""
        return f"{self.spec}, step_mode={self.step_mode}"

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts without state: after a forward with gradients it is no leaf and could not be copied.
        return {**self.__dict__, "_memories": dict(self.__dict__["_memories_rv"])}


class ParametricNode(nn.Module):
    """What ``PLIF`` learns, in a ``ParametricLIFNode``."""

    w: Tensor

    @property
    def beta(self) -> Tensor:
        """The share of the potential that is kept."""
        return 1 - self.w.sigmoid()


class Recursing(nn.Module):
    """Lets a module whose base is ``MemoryModule`` call ``_apply`` as torch defines it."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # MemoryModule._apply has no `recurse`; what we adopt keeps no tensors where it would look for some.
        nn.Module._apply(self, fn, recurse)
        return self


class SpikingJellyNetwork(nn.Module):
    """The part of a converted network that makes SpikingJelly's ``functional`` accept all its modules."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for module in self.children():
            for child in module.modules():
                make_memory_module(child)


def make_memory_module(module: M) -> M:
    """Make one of our modules with state (``reset()``, perhaps ``step_mode``) a ``MemoryModule``, in place.

    ``functional.reset_net``, ``detach_net`` and ``set_step_mode`` warn about a module that has ``reset``, ``detach``
    or ``step_mode`` and is no ``MemoryModule`` (for ``step_mode`` alone: no ``StepModule``). Others stay as they are.
    """
    theirs = _framework("base")
    if isinstance(module, theirs.MemoryModule) or not (hasattr(module, "reset") or hasattr(module, "step_mode")):
        return module
    adopted = cast(Any, module)
    step_mode = getattr(module, "step_mode", "s")
    adopted.__dict__.update(_memories={}, _memories_rv={}, _backend="torch")  # what MemoryModule.__init__ would set
    adopted.__class__ = framework_subclass(BASE, "MemoryModule", type(module), Recursing)
    adopted.step_mode = step_mode  # what was a plain attribute is StepModule's property from now on
    return module


def choose_kernel(
    *, step_mode: str, steps: int, nvidia: bool, stock: bool, dtype: torch.dtype, old: bool, cupy: bool
) -> str:
    """Return how a node takes up a sequence: by "step", as a "sequence", or as one by the kernels of "cupy".

    Fused kernels are for NVIDIA's devices, stock nodes and sequences. SpikingJelly 2.0 chooses among its own, native
    CUDA before Triton before PyTorch, by what is installed and the dtype. 0.0.0.0.14 (``old``) has those of CuPy, for
    float32; ``cupy``: it is installed, and the surrogate has code for it. Where none are, the step mode decides.

    >>> choose_kernel(step_mode="s", steps=8, nvidia=True, stock=True, dtype=torch.float32, old=True, cupy=True)
    'cupy'
    """
    if nvidia and stock and (steps > 1 or step_mode == "m"):
        if not old:
            return "sequence"
        if cupy and dtype is torch.float32:
            return "cupy"
    return "sequence" if step_mode == "m" else "step"


def call(node: Any, x_seq: Tensor, kernel: str) -> Tensor:
    """Return the spikes of ``node`` for x_seq [T, N, ...], with the kernel of ``choose_kernel``."""
    if kernel == "step":
        return torch.stack([node(x) for x in x_seq])
    before = {"step_mode": node.step_mode}
    if kernel == "cupy":  # 0.0.0.0.14 calls it in training mode alone, which changes nothing else in a neuron
        before |= {"backend": node.backend, "training": node.training}
    try:
        node.step_mode = "m"
        if kernel == "cupy":
            node.backend, node.training = "cupy", True
        return node(x_seq)
    finally:
        for name in reversed(before):
            setattr(node, name, before[name])


def _memories(neuron: nn.Module) -> tuple[str, ...]:
    """Return the names of what a node remembers, the potential first; stock nodes have nothing else."""
    return neuron.spec.state if isinstance(neuron, SpikingJellyNode) else ("v",)


class SpikingJellyBackend(Backend):
    """SpikingJelly; the newer version chooses its fused kernels itself."""

    name = "spikingjelly"

    def neuron(self, spec: Neuron) -> nn.Module:
        """Return ``IFNode``, ``LIFNode`` or ``ParametricLIFNode``, else ``SpikingJellyNode``: ``MemoryModule``s all."""
        check_neuron(spec, self.name)
        stock = (type(spec) is IF and spec.stock) or type(spec) is LIF or (type(spec) is PLIF and spec.beta < 1)
        if not stock:
            return framework_subclass(BASE, "MemoryModule", SpikingJellyNode)(spec)
        assert isinstance(spec, IF | LIF | PLIF)
        v_reset = 0.0 if spec.reset is Reset.ZERO else None
        options = {"v_threshold": 1.0, "v_reset": v_reset, "surrogate_function": _framework("surrogate").ATan()}
        if isinstance(spec, LIF):
            node = _framework("neuron").LIFNode(tau=float(spec.tau), decay_input=spec.decay_input, **options)
        elif isinstance(spec, PLIF):
            learning = cast(Any, framework_subclass(NEURON, "ParametricLIFNode", ParametricNode))
            node = learning(init_tau=1 / (1 - float(spec.beta)), decay_input=False, **options)
        else:
            node = _framework("neuron").IFNode(**options)
        node.set_reset_value("v", float(spec.v_init))  # for a node called directly, not through `run`
        node.reset()
        return node

    def run(self, neuron: nn.Module, x_seq: Tensor, v_init: Tensor | float) -> Tensor:
        """Advance ``neuron`` over x_seq [T, N, ...] with the kernel of ``choose_kernel``."""
        node = cast(Any, neuron)
        currents = x_seq.to(state_dtype(x_seq.dtype))
        if currents.is_cuda:
            currents = currents.contiguous()  # a constant current is one step expanded, and kernels count addresses
        if isinstance(node.v, Tensor):
            # SpikingJelly 2.0 would silently start anew from 0.
            check_state(node.v, currents[0], type(node).__name__)
        else:
            # Set here because SpikingJelly 2.0 takes a tensor as reset value for 0.
            node.v = initial_potential(v_init, currents[0])
        cupy = getattr(_framework("base"), "cupy", None) is not None
        kernel = choose_kernel(
            step_mode=node.step_mode,
            steps=len(currents),
            nvidia=currents.is_cuda and torch.version.hip is None,
            stock=not isinstance(node, SpikingJellyNode),
            dtype=currents.dtype,
            old=hasattr(node, "backend"),
            cupy=cupy and hasattr(node.surrogate_function, "cuda_codes"),
        )
        spikes = call(node, currents, kernel)
        return spikes.to(x_seq.dtype)

    def state(self, neuron: nn.Module) -> State | None:
        """Return the memories, which are floats while there is no state."""
        state = tuple(getattr(neuron, name) for name in _memories(neuron))
        return state if isinstance(state[0], Tensor) else None

    def set_state(self, neuron: nn.Module, state: State) -> None:
        """Replace the memories."""
        for name, value in zip(_memories(neuron), state, strict=True):
            setattr(neuron, name, value)

    def reset(self, neuron: nn.Module) -> None:
        """Forget the state."""
        cast(Any, neuron).reset()

    def set_surrogate(self, neuron: nn.Module, surrogate: str | Heaviside | None, detach_reset: bool) -> None:
        """Set ``surrogate_function`` and ``detach_reset``; names are those of the classes in ``surrogate``."""
        own = cast(Any, neuron)
        own.detach_reset = detach_reset
        if surrogate is not None:
            module = _framework("surrogate")
            base = module.SurrogateFunctionBase
            classes = inspect.getmembers(module, lambda v: inspect.isclass(v) and issubclass(v, base) and v is not base)
            del own.surrogate_function  # a module's name takes no function
            own.surrogate_function = named_surrogate(surrogate, classes, self.name)

    def root(self, base: type[nn.Module]) -> type[nn.Module]:
        """Return ``base`` with SpikingJelly's ``StepModule`` as a base."""
        return framework_subclass(BASE, "StepModule", SpikingJellyNetwork, base)


register_backend("spikingjelly", SpikingJellyBackend())
