"""The spiking site: the one place where a threshold meets a neuron of a framework."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conversion_ext.backends.base import Backend, advance_in_place, get_backend, initial_potential, is_hooked
from conversion_ext.errors import StateError
from conversion_ext.exact import accumulate, state_dtype
from conversion_ext.network.lookahead import LookAhead
from conversion_ext.network.session import Session
from conversion_ext.network.stepping import Runner, Stepping
from conversion_ext.neurons import Neuron
from conversion_ext.types import Family, Granularity, PerChannel, Steps

__all__ = ["SpikingSite"]
PIECE = 1 << 17  # elements of a piece of a block: what fits a cache


class SpikingSite(nn.Module):
    """Replace an activation by neurons of threshold 1: ``x -> /lambda -> neuron -> *lambda``.

    While ``scaled`` is False (folded), the weights around the site hold lambda and the neuron's spikes leave as they
    are. ``threshold`` is lambda in ANN units, [] or [C]; ``v_init`` the initial potential in units of lambda, [] or
    what broadcasts to [N, ...]; ``gain`` [] what a spike is worth behind the site, in units of lambda; ``bias`` what is
    added to the current in ANN units, [] for nothing, [C], or [S, C] for each of the first S steps from the reset, of
    which later steps get the mean.
    Input and output are [T*N, ...]; with ``static_input`` the input of a constant-current run is [N, ...].
    ``stepping`` drives the neurons; it sees single steps also where ``Steps`` come in blocks of K, and then the
    mean of the K steps of spikes leaves the site.
    With ``copies`` m, m neurons get the same current, from initial potentials that are 1/m apart around ``v_init``, and
    what leaves is the number of their spikes, each worth lambda / m: for a constant current z and ``v_init = 1/2`` the
    counts add up to ``floor(m T z + 1/2)`` (Hermite's identity), m T levels of neurons that know nothing of each other.
    ``clock``, where a network looks ahead, re-times the currents for the neurons; what is expected of the total is then
    corrected by ``decisions``, [] for nothing or [T, C] for each step, in units of lambda.
    """

    threshold: Tensor
    v_init: Tensor
    bias: Tensor
    gain: Tensor
    decisions: Tensor
    clock: LookAhead | None
    session: Session | None = None
    """The run that owns the state of the neurons, if one does; None: the framework's own forward is called."""

    def __init__(
        self,
        key: str,
        spec: Neuron,
        backend: Backend,
        threshold: Tensor,
        granularity: Granularity,
        static_input: bool = False,
        copies: int = 1,
    ) -> None:
        super().__init__()
        self.key = key
        self.spec = spec
        self.backend_name = backend.name
        self.dim = granularity.dim if isinstance(granularity, PerChannel) else 1
        self.scaled = True
        self.static_input = static_input
        self.neuron = backend.neuron(spec)
        self.stepping = Stepping()
        self.clock = None
        self.copies = copies
        self.register_buffer("threshold", threshold)
        self.register_buffer("bias", torch.zeros((), dtype=threshold.dtype, device=threshold.device))
        self.register_buffer("gain", torch.tensor(1 / copies, dtype=threshold.dtype, device=threshold.device))
        self.register_buffer("decisions", torch.zeros((), dtype=threshold.dtype, device=threshold.device))
        self.register_buffer("v_init", torch.tensor(spec.v_init, dtype=threshold.dtype, device=threshold.device))

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: Any, prefix: str, *args: Any
    ) -> None:
        """Take values of another shape, one for the site or one for each channel."""
        for name, own in list(self.named_buffers(recurse=False)):
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.shape != own.shape:
                setattr(self, name, own.new_empty(value.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def backend(self) -> Backend:
        """The framework whose neuron this site holds."""
        return get_backend(self.backend_name)

    def view(self, dims: int) -> Tensor:
        """Return the threshold shaped to broadcast over a batch of ``dims`` dimensions."""
        return self._along(self.threshold, dims)

    def amplitude(self, dims: int) -> Tensor:
        """Return what a spike is worth in ANN units, shaped to broadcast over a batch of ``dims`` dimensions."""
        return self.view(dims) * self.gain

    def _along(self, value: Tensor, dims: int) -> Tensor:
        if value.dim() == 0:
            return value
        shape = [1] * dims
        shape[self.dim] = -1
        return value.reshape(*value.shape[:-1], *shape)

    def current(self, x: Tensor) -> Tensor:
        """Return what the neurons of threshold 1 are charged with on average for input x [N, ...]."""
        return self._current(x[None], self.bias.mean(0) if self.bias.dim() == 2 else self.bias)[0]

    def _current(self, x_seq: Tensor, bias: Tensor) -> Tensor:
        """Return the currents for inputs x_seq [T, N, ...] and a bias [], [C] or [T, C]."""
        dims = x_seq.dim() - 1
        if bias.dim():  # zero-dimensional: no tuner has set one
            bias = self._along(bias, dims)
            x_seq = x_seq + (bias if self.scaled else bias / self.view(dims)).to(x_seq.dtype)
        return x_seq / self.view(dims).to(x_seq.dtype) if self.scaled else x_seq

    def _coming_bias(self, steps: Steps) -> Tensor:
        """Return the bias of the steps, or the means of the blocks, to come: [], [C] or [T, C]."""
        if self.bias.dim() < 2:
            return self.bias
        rows = torch.cat((self.bias, self.bias.mean(0, keepdim=True)))
        t = self.stepping.t + torch.arange(steps.T * steps.block, device=rows.device)
        return rows[t.clamp_max(len(self.bias))].unflatten(0, (steps.T, steps.block)).mean(1)

    def forward(self, x: Tensor, steps: Steps) -> Tensor:
        """Return the spikes (times lambda where ``scaled``) for input current x over the given steps."""
        return self.emitted(self.spikes(x, steps))

    def spikes(self, x: Tensor, steps: Steps) -> Tensor:
        """Return the spikes of the neurons by their weights, [T*N, ...], for input x over the given steps."""
        z_seq = self.currents(x, steps)
        if steps.block == 1:
            s_seq = self._in_time(z_seq, steps.live)
        else:
            s_seq = torch.stack([self._mean_spikes(z, steps.block) for z in z_seq])
        return s_seq.flatten(0, 1)

    def currents(self, x: Tensor, steps: Steps) -> Tensor:
        """Return the currents [T, N, ...] in units of the threshold for input x over the given steps."""
        x_seq = x[None] if self.static_input and steps.constant else x.unflatten(0, (steps.T, -1))
        z_seq = self._current(x_seq, self._coming_bias(steps))
        return z_seq.expand(steps.T, *z_seq.shape[1:])

    def _in_time(self, z_seq: Tensor, live: bool) -> Tensor:
        """Return what the neurons send in single steps, [T, N, ...], each spike by its weight."""
        if self.clock is None:
            return self.stepping(self, z_seq)
        begun = self.stepping.t > 0 if self.clock.t == 0 else not live
        if begun:
            raise StateError(
                f"{self.key} looks ahead: a run is one call of all its T steps, or ticks alone, and one has been "
                "begun; reset the network."
            )
        if live:
            ticks = ((z, self.clock.tick(z)) for z in z_seq)
            return torch.cat([torch.zeros_like(z)[None] if y is None else self._decide(y[None]) for z, y in ticks])
        return self._decide(self.clock.run(z_seq))

    def _decide(self, y_seq: Tensor) -> Tensor:
        """Return what the neurons send for the next of the re-timed currents y_seq [T, N, ...]."""
        first = self.stepping.t
        if self.decisions.dim():
            changes = self.decisions.diff(dim=0, prepend=self.decisions.new_zeros(1, self.decisions.shape[1]))
            y_seq = y_seq + self._along(changes[first : first + len(y_seq)], y_seq.dim() - 1).to(y_seq.dtype)
        return self._weighted(self.stepping(self, y_seq), first)

    def _weighted(self, s_seq: Tensor, first: int = 0) -> Tensor:
        """Return spikes s_seq [T, N, ...] by their weights, those of the steps after the first ``first``."""
        if self.spec.weights is None:
            return s_seq
        weights = s_seq.new_tensor(self.spec.weights[first : first + len(s_seq)])
        return s_seq * weights.view(-1, *[1] * (s_seq.dim() - 1))

    def _mean_spikes(self, z: Tensor, K: int) -> Tensor:
        """Return the mean [N, ...] of the spikes of K steps under the current z [N, ...]."""
        if self.spec.weights is not None:  # whose first decision is about the total
            total = F.pad(K * z[None], (0, 0) * z.dim() + (0, K - 1))
            return self._weighted(self.stepping(self, total)).mean(0)
        # All steps at once would take K times the memory, and steps one by one cost more to call than to compute.
        most = max(1, PIECE // max(z.numel(), 1))
        total = torch.zeros_like(z, dtype=state_dtype(z.dtype))
        for first in range(0, K, most):
            spikes = self.stepping(self, z.expand(min(most, K - first), *z.shape))
            total = accumulate(total, spikes[0] if len(spikes) == 1 else spikes.sum(0, dtype=total.dtype))
        return (total / K).to(z.dtype)

    @property
    def potential(self) -> Tensor | None:
        """The membrane potential [N, ...] after the last step, in units of the threshold; None before the first.

        Of copies it is their mean.
        """
        v = self.backend.membrane_potential(self.neuron)
        return v if v is None or self.neurons == 1 else v.mean(1)

    def start(self, z: Tensor) -> Tensor:
        """Return the potential [N, ...] from which the neurons start under currents z [N, ...]."""
        return initial_potential(self.v_init, z)

    def run(self, z_seq: Tensor, v_init: Tensor | None = None, by: Runner | None = None) -> Tensor:
        """Return spikes [T, N, ...] for currents z_seq; without state, neurons start from ``v_init`` or the site's.

        ``by(z_seq, start)`` runs them in the place of the framework.
        """
        start = self.v_init if v_init is None else v_init
        run = by or self._run
        if self.spec.members == 2:
            on, off = run(z_seq.unsqueeze(2).expand(*z_seq.shape[:2], 2, *z_seq.shape[2:]), start).unbind(2)
            return on - off
        if self.copies == 1:
            return run(z_seq, start)
        m = self.copies
        spread = (torch.arange(m, dtype=start.dtype, device=start.device) + 0.5) / m - 0.5
        start = start + spread.view(m, *[1] * (z_seq.dim() - 2))
        return run(z_seq.unsqueeze(2).expand(*z_seq.shape[:2], m, *z_seq.shape[2:]), start).sum(2)

    def _run(self, z_seq: Tensor, start: Tensor) -> Tensor:
        # CUDA has the framework's fused kernels, and only its own forward runs the hooks of a user.
        if self.session is not None and not z_seq.is_cuda and not is_hooked(self.neuron):
            count, room = self._count(self.session, z_seq[0]), self.session.room
            return advance_in_place(
                self.backend, self.neuron, self.spec, z_seq, start, count, self.session.kernel,
                lambda z, dtype: room((self.key, "v"), z, dtype), self._owns_input(self.session),
            )  # fmt: skip
        return self.backend.run(self.neuron, z_seq, start)

    def _owns_input(self, session: Session) -> bool:
        """Return whether the currents are written to: where each is its own number, and read once."""
        once = self.stepping.plain and self.neurons == 1 and self.clock is None and not self.static_input
        return once and self.key in session.fresh and not is_hooked(self) and not is_hooked(self.stepping)

    @property
    def neurons(self) -> int:
        """How many neurons stand for one activation."""
        return self.copies * self.spec.members

    @property
    def binary(self) -> bool:
        """Whether what leaves in a step is 0 or 1: binary spikes, and of one neuron."""
        return self.spec.family is Family.BINARY and self.neurons == 1

    @property
    def levels(self) -> float:
        """The most that leaves in a step on average, in spikes."""
        return self.spec.levels * self.copies

    @property
    def largest(self) -> float:
        """The largest value of a step: spikes by their weights."""
        return max(self.spec.weights or (self.spec.levels,)) * self.copies

    @property
    def counts_spikes(self) -> bool:
        """Whether it can count what leaves it: the spikes of its neurons, advanced in place."""
        plain = self.stepping.plain and self.neurons == 1
        return plain and not self.threshold.is_cuda and not is_hooked(self.neuron)

    def _count(self, session: Session, z: Tensor) -> Tensor | None:
        """Return the number of spikes [N, ...] so far, to be added to; None where they are not counted here."""
        if session.counts is None or not self.counts_spikes:
            return None
        if self.key not in session.counts:
            session.counts[self.key] = session.room((self.key, "count"), z, state_dtype(z.dtype)).zero_()
        return session.counts[self.key]

    def restart(self) -> None:
        """Forget the state of the neurons."""
        self.backend.reset(self.neuron)

    def emitted(self, spikes: Tensor, overwrite: bool = False) -> Tensor:
        """Return what leaves the site for its neurons' spikes (or rates), in their place where ``overwrite``."""
        if not self.scaled:
            return spikes
        amplitude = self.amplitude(spikes.dim()).to(spikes.dtype)
        return spikes.mul_(amplitude) if overwrite else spikes * amplitude

    def extra_repr(self) -> str:
        """Show key, neuron and threshold."""
        return f"key={self.key!r}, {self.described()}"

    def described(self) -> str:
        """Return neuron and threshold in a line, the range of the latter where it differs by channel."""
        if torch.compiler.is_compiling():  # an exporter shows modules whose tensors hold no numbers
            scale = "..."
        else:
            low, high = self.threshold.min().item(), self.threshold.max().item()
            scale = f"{low:.4g}" if low == high else f"{low:.4g}..{high:.4g}"
        copies = f", copies={self.copies}" if self.copies > 1 else ""
        spec = re.sub(r"<([\w.]+): [^>]*>", r"\1", repr(self.spec))
        return f"{spec}, threshold={scale}, scaled={self.scaled}{copies}"
