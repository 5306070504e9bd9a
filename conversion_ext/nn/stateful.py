"""The base of modules that remember earlier time steps, and what their states have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from conversion_ext.errors import StateError, require
from conversion_ext.graph.values import map_tensors
from conversion_ext.types import Family, Steps

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Memory", "Signature", "Stateful", "check_signature"]


class Signature(NamedTuple):
    """What one time step of an input looks like; fixed until the next reset."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def resized(self, n: int, N: int) -> Signature:
        """Return the signature for N samples in the place of n."""
        return self._replace(shape=torch.Size((self.shape[0] // n * N, *self.shape[1:])))


def check_signature(owner: str, seen: Signature | None, x_seq: Tensor) -> Signature:
    """Return the signature of a step of ``x_seq`` [T, N, ...]; raise StateError if it differs from ``seen``."""
    now = Signature(x_seq.shape[1:], x_seq.dtype, x_seq.device)
    if seen is not None and seen != now:
        raise StateError(
            f"{owner} holds the state of steps {_describe(seen)} and was given {_describe(now)}; "
            "reset it before a new simulation."
        )
    return now


class Memory(nn.Module):
    """Base of modules that remember: ``t`` steps seen since the last reset, and the attributes ``state_names``.

    After a reset these are None. They are absent from ``state_dict`` and dropped by copies and by ``.to(...)``.
    """

    state_names: ClassVar[tuple[str, ...]] = ()
    t: int

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def _initial_fields(self) -> dict[str, Any]:
        """Return what a module remembers before its first step."""
        return {"t": 0, **dict.fromkeys(self.state_names)}

    @property
    def state_fields(self) -> tuple[str, ...]:
        """The attributes that change from step to step."""
        return tuple(self._initial_fields())

    def reset(self) -> None:
        """Forget all steps seen so far."""
        for name, value in self._initial_fields().items():
            setattr(self, name, value)

    def map_state(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor that it remembers by ``change`` of it."""
        for name in self.state_names:
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, map_tensors(value, change))

    def __getstate__(self) -> dict[str, Any]:
        # Tensors made under autograd cannot be deep-copied, and a copy is a new network: it starts at step 0.
        return {**self.__dict__, **self._initial_fields()}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # A state cast to a narrower dtype would be wrong silently, so .to(...) starts a new simulation.
        self.reset()
        return super()._apply(fn, recurse)


class Stateful(Memory):
    """Base of stateful modules for hand-written and converted networks.

    Called as ``module(x)``, ``x`` is one step [N, ...] (``step_mode="s"``) or a sequence [T, N, ...] (``"m"``).
    Called as ``module(x, Steps(T))``, as in the body of a converted network, time is folded into the batch,
    [T*N, ...], whatever the step mode. Inputs marked in ``static_inputs`` arrive once, [N, ...], when
    ``steps.constant``, and hold for all T steps. Several inputs are given as ``module(x1, x2, ..., steps)``.

    A subclass implements ``multi_step`` and names its state attributes; see ``Memory``. State is float32 or wider.
    ``idles``: whether inputs of 0 change nothing and give 0. Where ``means`` is False, the module needs every step and
    refuses ``Steps`` that stand for blocks.

    Raises:
        StateError: an input changed its shape, dtype or device since the last ``reset()``.
    """

    inputs: int = 1
    pace: tuple[float, ...] | None = None
    _in_blocks: bool = False
    means: bool = True
    idles: bool = False
    _seen: tuple[Signature | None, ...]
    _step_mode: str = "s"

    def __init__(self, step_mode: str = "s") -> None:
        super().__init__()
        self.step_mode = step_mode
        self.static_inputs: tuple[bool, ...] = ()

    @property
    def step_mode(self) -> str:
        """``"s"`` for one step per call, ``"m"`` for a sequence per call."""
        return self._step_mode

    @step_mode.setter
    def step_mode(self, value: str) -> None:
        require(value in ("s", "m"), f'step_mode={value!r}: use "s" (a step [N, ...]) or "m" (a sequence [T, N, ...]).')
        self._step_mode = value

    @property
    def present_pace(self) -> tuple[float, ...] | None:
        """What the first t steps of the present run are worth, in steps: None for t, as in blocks, which are means."""
        return None if self._in_blocks else self.pace

    @property
    def binary(self) -> bool:
        """Whether inputs in {0, 1} give outputs in {0, 1}."""
        return self.family_out(*[Family.BINARY] * self.inputs) is Family.BINARY

    def family_out(self, *families: Family) -> Family:
        """Return what values the output takes at one step, given those of the inputs."""
        raise NotImplementedError

    def multi_step(self, *x_seqs: Tensor) -> Tensor:
        """Advance the state over inputs [T, N, ...], ``self.t`` steps after the reset; return outputs [T, N, ...]."""
        raise NotImplementedError

    def _initial_fields(self) -> dict[str, Any]:
        return {**super()._initial_fields(), "_seen": (None,) * self.inputs}

    def resize(self, n: int, N: int) -> None:
        """Expect steps of N samples in the place of n, for whoever has changed the state accordingly."""
        self._seen = tuple(None if seen is None else seen.resized(n, N) for seen in self._seen)

    def forward(self, *args: Tensor | Steps) -> Tensor:
        """Return the outputs of the steps given, in the layout in which they were given."""
        steps = args[-1] if args and isinstance(args[-1], Steps) else None
        name = type(self).__name__
        require(
            steps is None or steps.block == 1 or self.means,
            f"{name} needs every time step and cannot work on the means of blocks; use block=1.",
        )
        if steps is not None and steps.live and not self.idles:
            raise StateError(
                f"{name} cannot wait for its input tick by tick, as networks that look ahead need it; use cx.simulate."
            )
        self._in_blocks = steps is not None and steps.block > 1
        x_seqs = self._sequences(args if steps is None else args[:-1], steps)
        seen = tuple(check_signature(name, old, x_seq) for old, x_seq in zip(self._seen, x_seqs, strict=True))
        y_seq = self.multi_step(*x_seqs)
        self._seen = seen
        self.t += x_seqs[0].shape[0]
        if steps is not None:
            return y_seq.flatten(0, 1)
        return y_seq[0] if self.step_mode == "s" else y_seq

    def _sequences(self, xs: tuple[Any, ...], steps: Steps | None) -> list[Tensor]:
        """Return the inputs as floating-point sequences [T, N, ...] of equal length."""
        name = type(self).__name__
        require(len(xs) == self.inputs, f"{name} was given {len(xs)} inputs; it takes {self.inputs}.")
        for x in xs:
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            require(
                isinstance(x, Tensor) and x.is_floating_point(),
                f"{name} was given {kind}; it takes floating-point tensors: convert spikes with .float().",
                TypeError,
            )
        if steps is not None:
            static = self.static_inputs if steps.constant else ()
            static = (*static, *[False] * (len(xs) - len(static)))
            return [
                paced(x, steps.T, self.present_pace) if once else x.unflatten(0, (steps.T, -1))
                for x, once in zip(xs, static, strict=True)
            ]
        x_seqs = [x.unsqueeze(0) for x in xs] if self.step_mode == "s" else list(xs)
        lengths = {x_seq.shape[0] for x_seq in x_seqs}
        one = len(lengths) == 1 and 0 not in lengths
        require(one, f"{name} was given sequences of {sorted(lengths)} steps; give [T, N, ...] of one T >= 1.")
        return x_seqs

    def extra_repr(self) -> str:
        """Return the step mode, for ``print``."""
        return f"step_mode={self.step_mode!r}"


def paced(x: Tensor, T: int, pace: Sequence[float] | None) -> Tensor:
    """Return x [N, ...] at each of T steps, [T, N, ...], in the shares of T that ``pace`` gives them."""
    x_seq = x.expand(T, *x.shape)
    if pace is None:
        return x_seq
    shares = x.new_tensor(pace[:T]).diff(prepend=x.new_zeros(1))
    return x_seq * shares.view(-1, *[1] * x.dim())


def _describe(signature: Signature) -> str:
    return f"{list(signature.shape)} {str(signature.dtype).removeprefix('torch.')} on {signature.device}"
