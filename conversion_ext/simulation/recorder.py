"""What is kept of a simulation beside its output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from conversion_ext.exact import state_dtype
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.state import rows_of
from conversion_ext.network.stepping import Stepping

__all__ = ["RECORDS", "Recorder"]

RECORDS = ("spikes", "potential")


class Recorder:
    """While open, counts the spikes of every site and keeps what was asked for; no hook outlives it.

    ``counts`` is for the session of the run: sites that count their spikes do it there, others by a hook.
    ``samples`` is the number N of those that run. What has k rows for each of them is shown as [N, k, ...].
    """

    def __init__(self, sites: Mapping[str, SpikingSite], samples: int, record: Sequence[str] = ()) -> None:
        self.sites = sites
        self.samples = samples
        self.record = record
        self.counts: dict[str, Tensor] = {}
        self.settled: dict[str, Tensor] = {}  # of samples that were let go
        self.before: dict[str, Tensor] = {}  # spikes per sample before `begin`
        self.kept: dict[str, dict[str, list[Tensor]]] = {name: {key: [] for key in self.sites} for name in record}
        self.handles: list[Any] = []

    def __enter__(self) -> Recorder:
        for site in self.sites.values():
            if self.record or not site.counts_spikes:
                self.handles.append(site.stepping.register_forward_hook(self._hook))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, _: Stepping, args: tuple[Any, ...], spikes: Tensor) -> None:
        """Take up the spikes [T, N, ...] that a site emitted in a call."""
        site: SpikingSite = args[0]
        if not site.counts_spikes:
            count = spikes.abs().sum(0, dtype=state_dtype(spikes.dtype))
            self.counts[site.key] = count + self.counts[site.key] if site.key in self.counts else count
        if "spikes" in self.record:
            self.kept["spikes"][site.key].append(spikes)
        if "potential" in self.record:
            potential = site.start(spikes[0]) if site.potential is None else site.potential.clone()
            self.kept["potential"][site.key].append(potential.unsqueeze(0))

    def begin(self) -> None:
        """Count anew, after a warm-up."""
        self.before = self.spikes()
        self.counts.clear()  # the session holds it

    def settle(self, index: Tensor, rows: Tensor, N: int) -> None:
        """Put down what was counted so far for the samples ``index``, which are ``rows`` of N."""
        for key, count in self._shown(self.counts).items():
            total = self.settled.setdefault(key, count.new_zeros(N, *count.shape[1:]))
            total[rows] = count[index]

    def keep(self, index: Tensor) -> None:
        """Go on with the samples ``index``."""
        for key, count in self.counts.items():
            self.counts[key] = count[rows_of(index, self.samples, count)]
        self.samples = len(index)

    def spikes(self) -> dict[str, Tensor]:
        """Return {site: spikes per sample [N]}, those before ``begin`` included."""
        counts = self.settled or self._shown(self.counts)
        return {key: count.sum([*range(1, count.dim())]) + self.before.get(key, 0) for key, count in counts.items()}

    def rates(self, T: int | Tensor) -> dict[str, Tensor]:
        """Return {site: spikes per step} of T steps, for all samples or [N]. It overwrites counts: call it last."""
        counts = self.settled or self._shown(self.counts)
        steps = {
            key: T if isinstance(T, int) else T.view(-1, *[1] * (count.dim() - 1)) for key, count in counts.items()
        }
        return {key: _divided(counts[key], steps[key]) for key in self.sites if key in counts}

    def recorded(self) -> dict[str, dict[str, Tensor]]:
        """Return {quantity: {site: [T, N, ...]}}."""
        joined = {name: {k: torch.cat(v) for k, v in series.items() if v} for name, series in self.kept.items()}
        return {name: self._shown(series, 1) for name, series in joined.items()}

    def _shown(self, values: Mapping[str, Tensor], dim: int = 0) -> dict[str, Tensor]:
        """Return values with the samples, and they alone, in ``dim``."""
        N = self.samples
        return {key: v if v.shape[dim] == N else v.unflatten(dim, (N, -1)) for key, v in values.items()}


def _divided(count: Tensor, steps: int | Tensor) -> Tensor:
    return count / steps if count.is_inference() else count.div_(steps)
