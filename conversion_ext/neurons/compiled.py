"""Neurons compiled: many steps, and all that they do, in one pass over memory."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

import torch
from torch import Tensor

from conversion_ext.errors import warn
from conversion_ext.neurons.base import Heaviside, Neuron, State
from conversion_ext.neurons.updates import advance

__all__ = ["advance_compiled"]

# Steps of one compiled call: the compiler unrolls them, and takes the longer the more they are.
PIECE = 16

Kernel = Callable[..., Tensor]
"""``(currents [T, M], *state [M], count [M]) -> spikes [T, M]``; state and count are overwritten."""


def advance_compiled(
    spec: Neuron,
    x_seq: Tensor,
    state: State,
    heaviside: Heaviside,
    in_place: bool = True,
    count: Tensor | None = None,
    overwrite: bool = False,
) -> tuple[Tensor, State]:
    """Do what :func:`advance` does in place, by ``torch.compile``; where that fails, warn and call ``advance``.

    Results are those of ``advance``, bit for bit where a neuron adds, compares and rounds; ``exp`` may differ in its
    last bit. The first call for a neuron, a dtype and a number of steps compiles, which takes seconds.

    Args:
        spec: the neuron.
        x_seq: currents [T, N, ...].
        state: its state, tensors [N, ...].
        heaviside: the step function.
        in_place: whether the tensors of ``state`` may be overwritten.
        count: numbers of spikes [N, ...], to which those of these steps are added.
        overwrite: whether spikes may take the place of the currents; only ``advance`` makes use of it.

    Returns:
        Spikes [T, N, ...], and the state after the last step.
    """
    kept = (*state, torch.zeros_like(state[0]) if count is None else count)
    rows = [_row(part, state[0]) for part in (x_seq, *kept)]
    if _broken or any(row is None for row in rows):
        return advance(spec, x_seq, state, heaviside, in_place, count, overwrite=overwrite)
    currents, *flat = rows
    assert currents is not None
    pieces = list[Tensor]()
    for piece in currents.split(PIECE):
        try:
            pieces.append(_kernel(spec, heaviside, len(piece))(piece, *flat))
        except Exception as error:  # of many kinds: no compiler, no headers, no room for its files
            if pieces:
                raise
            _broken.append(error)
            why = str(error).strip().partition("\n")[0][:120]
            warn(f"torch.compile does not work here, so neurons run without it: {type(error).__name__}: {why}")
            return advance(spec, x_seq, state, heaviside, in_place, count, overwrite=overwrite)
    spikes = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return spikes.as_strided(x_seq.shape, (state[0].numel(), *state[0].stride())), state


_broken: list[Exception] = []


@functools.cache
def _kernel(spec: Neuron, heaviside: Heaviside, T: int) -> Kernel:
    def steps(currents: Tensor, *kept: Tensor) -> Tensor:
        *old, count = kept
        state, total = tuple(old), count
        spikes: list[Tensor] = []  # a call of list[Tensor] would split the kernel in two
        for x in currents.unbind(0):
            s, state = spec.step(x.to(count.dtype), state, heaviside)
            spikes.append(s.to(x.dtype))
            total = total + s.abs()
        for part, value in zip(kept, (*state, total), strict=True):
            part.copy_(value)
        return torch.stack(spikes)

    # torch gives up on code that it has compiled 8 times, and tells codes apart by identity: each kernel gets its own.
    own = types.FunctionType(steps.__code__.replace(), globals(), steps.__name__, None, steps.__closure__)
    return torch.compile(own, dynamic=True)


def _row(x: Tensor, like: Tensor) -> Tensor | None:
    """View x [..., N, ...] as [..., M], None unless its [N, ...] fill their memory in the order of ``like``."""
    lead, reach = x.dim() - like.dim(), 1
    for n, step, expected in zip(like.shape, x.stride()[lead:], like.stride(), strict=True):
        if n > 1 and step != expected:
            return None
        reach += (n - 1) * step if n > 1 else 0
    return x.as_strided((*x.shape[:lead], reach), (*x.stride()[:lead], 1)) if reach == like.numel() else None
