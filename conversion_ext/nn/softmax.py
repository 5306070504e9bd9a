"""Softmax as the output layer of a spiking network."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from conversion_ext.errors import require
from conversion_ext.exact import running_sums, state_dtype
from conversion_ext.nn.differential import differential
from conversion_ext.nn.stateful import Stateful
from conversion_ext.types import Family

__all__ = ["METHODS", "SpikingSoftmax"]

METHODS = ("membrane", "poisson", "external-poisson")


class SpikingSoftmax(Stateful):
    """Softmax over ``dim`` of neurons that only integrate: ``v[t] = x[1] + ... + x[t]``, never reset by a spike.

    Since nothing has to reach a threshold, it decides also where all inputs are negative. Inputs are logits in
    units of the ANN; ``dim`` counts without the time axis.

    - ``"membrane"``: no spikes; the mean of the outputs of steps 1..t is ``softmax(v[t] / t)``, the ANN's softmax
      of the mean logits (emitted as ``t softmax(v[t]/t) - (t-1) softmax(v[t-1]/(t-1))``).
    - ``"poisson"``: each step, each neuron spikes with probability ``softmax(v[t])``, independently of the others.
    - ``"external-poisson"``: a clock of each sample ticks with probability ``rate`` per step; at a tick one neuron,
      drawn from ``softmax(v[t])``, spikes. (Rueckauer et al.: 300 Hz at 1 ms steps, ``rate=0.3``.)

    As v grows with t, both spiking methods sharpen towards the argmax; no gradient flows through their spikes.
    ``generator``: a seed, or a generator from which one is drawn at construction (None: torch's own). The draws
    start anew at ``reset()``, so equal runs are equal; assign ``seed`` for others. Call, shapes, state and errors: see
    ``Stateful``.

    Reference: Rueckauer et al., 2017; the external clock after Nessler et al., 2009.
    """

    state_names = ("total", "previous", "generator")
    total: Tensor | None
    previous: Tensor | None
    generator: torch.Generator | None

    def __init__(
        self,
        dim: int = -1,
        method: str = "membrane",
        rate: float = 1.0,
        generator: torch.Generator | int | None = None,
        step_mode: str = "s",
    ) -> None:
        require(method in METHODS, f"SpikingSoftmax(method={method!r}): use one of {', '.join(METHODS)}.")
        require(dim != 0, "SpikingSoftmax(dim=0): dimension 0 is the batch; name the dimension of the classes.")
        require(0 < rate <= 1, f"SpikingSoftmax(rate={rate!r}): the clock ticks with a probability per step in (0, 1].")
        super().__init__(step_mode)
        self.dim = dim
        self.method = method
        self.means = method == "membrane"  # drawing once per block would be another distribution
        self.rate = rate
        self.seed = 0 if method == "membrane" else _seed(generator)

    def family_out(self, *families: Family) -> Family:
        """Return GRADED for ``"membrane"``, else BINARY."""
        return Family.GRADED if self.method == "membrane" else Family.BINARY

    def multi_step(self, *x_seqs: Tensor) -> Tensor:
        """Return outputs for logits [T, N, ...]."""
        (x_seq,) = x_seqs
        require(
            -x_seq.dim() + 1 < self.dim < x_seq.dim() - 1,
            f"SpikingSoftmax(dim={self.dim}) was given steps {list(x_seq.shape[1:])}, which have no such dimension "
            f"besides the batch, in step mode {self.step_mode!r}.",
        )
        if self.method == "membrane":
            softmax, state = partial(torch.softmax, dim=self.dim), ((self.total,), self.previous)
            y_seq, ((self.total,), self.previous) = differential(softmax, (x_seq,), self.t, state)
            return y_seq
        if self.generator is None:
            self.generator = torch.Generator(x_seq.device).manual_seed(self.seed)
        with torch.no_grad():
            v_seq = running_sums(self.total, x_seq, state_dtype(x_seq.dtype))
            self.total = v_seq[-1].clone()
            draw = self._each if self.method == "poisson" else self._one
            return torch.stack([draw(v) for v in v_seq]).to(x_seq.dtype)

    def _each(self, v: Tensor) -> Tensor:
        """Let every neuron spike with its probability."""
        return self._uniform(v) < v.softmax(self.dim)

    def _one(self, v: Tensor) -> Tensor:
        """Let one neuron spike where the clock ticks."""
        tick = self._uniform(v.select(self.dim, 0).unsqueeze(self.dim)) < self.rate
        # argmax of v plus Gumbel noise is distributed as softmax(v)
        noise = -torch.empty_like(v).exponential_(generator=self.generator).log()
        winner = (v + noise).argmax(self.dim, keepdim=True)
        return torch.zeros_like(v).scatter(self.dim, winner, tick.to(v.dtype))

    def _uniform(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=self.generator, dtype=like.dtype, device=like.device)

    def extra_repr(self) -> str:
        """Return dimension, method and step mode, for ``print``."""
        drawn = "" if self.method == "membrane" else f"seed={self.seed}, "
        clock = f"rate={self.rate}, " if self.method == "external-poisson" else ""
        return f"dim={self.dim}, method={self.method!r}, {clock}{drawn}{super().extra_repr()}"


def _seed(generator: torch.Generator | int | None) -> int:
    """Return a seed: a module that keeps a number can be copied, moved and rewound, one that keeps a generator not."""
    if isinstance(generator, int):
        return generator
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))
