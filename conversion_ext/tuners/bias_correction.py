"""Bias correction: the mean output of every channel made that of the ANN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from tqdm import tqdm

from conversion_ext.nn.root import reset
from conversion_ext.nn.site import SpikingSite
from conversion_ext.tuners.base import Task, Tuner, register_tuner
from conversion_ext.types import Steps

__all__ = ["BiasCorrection"]


@dataclass(frozen=True, kw_only=True)
class BiasCorrection(Tuner):
    """Add to the current of each channel what its mean output lacks: ``bias_c += mean(a_c) - mean(lambda_c rate_c)``.

    Sites are corrected in graph order, each against what the corrected sites before it really emit in T steps; a
    is the ANN's activation, the means are over samples, positions and steps. A correction that does not bring a
    site's means closer (root mean square over channels) is taken back. Changes ``SpikingSite.bias``, nothing else.

    Costs two partial simulations of the calibration data per site.

    Reference: Li, Deng, Dong, Gong, Gu, ICML 2021 ("light" calibration).
    """

    def tune(self, task: Task) -> None:
        """Correct every site of ``task.body``."""
        nodes = [n for n in task.body.graph.nodes if n.op == "call_module"]
        sites = [m for m in (task.body.get_submodule(str(n.target)) for n in nodes) if isinstance(m, SpikingSite)]
        wanted = _activations(task, [site.key for site in sites])
        for site in tqdm(sites, desc="bias correction", disable=not task.progress):
            if site.key not in wanted:
                continue
            before = site.bias
            gap = wanted[site.key] - _emitted(task, site)
            site.bias = before + gap.to(before.dtype)
            if not _size(wanted[site.key] - _emitted(task, site)) < _size(gap):
                site.bias = before
        reset(task.body)


def _size(gap: Tensor) -> float:
    return float(gap.square().mean())


class _Found(Exception):  # noqa: N818  control flow: the rest of the network need not run
    """The site that was looked for has run."""


def _activations(task: Task, keys: list[str]) -> dict[str, Tensor]:
    """Return {site key: mean activation of the ANN per channel}."""
    means = {key: _Mean() for key in keys}
    handles = []
    for node in task.ann.graph.nodes:
        mean = means.get(node.meta.get("key", ""))
        if node.op == "call_module" and mean is not None:
            module = task.ann.get_submodule(str(node.target))
            handles.append(module.register_forward_hook(lambda _m, _a, output, mean=mean: mean.add(output)))
    try:
        _run(task, task.ann, ())
    finally:
        for handle in handles:
            handle.remove()
    return {key: mean.value() for key, mean in means.items() if mean.count}


def _emitted(task: Task, site: SpikingSite) -> Tensor:
    """Return the mean output of ``site`` per channel over T steps, running no more of the network than it needs."""
    mean = _Mean()

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        mean.add(output)
        raise _Found

    handle = site.register_forward_hook(hook)
    try:
        _run(task, task.body, (Steps(task.T, constant=True),))
    finally:
        handle.remove()
    return mean.value()


def _run(task: Task, network: GraphModule, extra: tuple[Any, ...]) -> None:
    for batch in task.batches:
        reset(network)
        try:
            with torch.no_grad():
                network(*task.inputs(batch), *extra)
        except _Found:
            continue


class _Mean:
    """Mean over everything but dimension 1, batch by batch, in float64."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def add(self, x: Tensor) -> None:
        """Add a batch [N, C, ...]."""
        rows = x.detach().transpose(0, 1).flatten(1)
        self.total = self.total + rows.sum(1, dtype=torch.float64)
        self.count += rows.shape[1]

    def value(self) -> Tensor:
        """Return the mean per channel [C]."""
        assert isinstance(self.total, Tensor)
        return self.total / self.count


register_tuner("bias_correction", BiasCorrection)
