"""Prepare a network for training with activations that spiking neurons compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.calibration.observer import Observer
from conversion_ext.capture.passes import passes, refused
from conversion_ext.capture.tracing import capture
from conversion_ext.data.batches import batches, call_inputs
from conversion_ext.data.inputs import device_of
from conversion_ext.errors import UnsupportedError, require, warn
from conversion_ext.graph.layers import MAX_POOLS
from conversion_ext.operators.sites import Site
from conversion_ext.types import PerLayer

__all__ = ["adapt_cao2015", "max_to_average", "replace_relu"]

# Calls become modules without a change of any layer: BatchNorm stays, since it is trained.
REWRITES = ("out_of_place", "activations", "functional_layers")


def replace_relu(
    ann: nn.Module,
    make: Callable[..., nn.Module],
    calibration: Any = None,
    *,
    p: float = 99.9,
    leaf: Iterable[str | type[nn.Module]] = (),
    skip: Iterable[str] = (),
) -> GraphModule:
    """Return a copy of ``ann`` with a module of its own from ``make()`` in the place of every ReLU, ready to train.

    ReLUs and clipped ReLUs are found as modules, functions and methods, and a module called twice is replaced twice.
    With ``calibration`` data each is made as ``make(threshold=...)``, the ``p``-th percentile of what its ReLU gives.
    What the forward of ``ann`` does in training only (``F.dropout``) is left out: the copy does what ``ann`` does in
    evaluation, with its dropout and BatchNorm *modules* in place. ``ann`` is not changed.

    >>> from functools import partial
    >>> from conversion_ext.nn import QCFS
    >>> ann = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> [module for module in replace_relu(ann, partial(QCFS, levels=8)).modules() if isinstance(module, QCFS)]
    [QCFS(levels=8, threshold=8, order='clamp-floor')]

    Args:
        ann: the network.
        make: called once per ReLU; returns the module that takes its place.
        calibration: data as :func:`convert` reads it; with it ``make`` is given ``threshold=``.
        p: the percentile of activations that becomes the threshold.
        leaf: types or paths of modules that are not traced into.
        skip: paths of modules that stay as they are.

    Returns:
        The copy, in training or evaluation as ``ann`` is.

    Raises:
        UnsupportedError: for a network that cannot be traced or has no ReLU.
    """
    model = _modules_only(ann, leaf, skip)
    relus = [
        (node, module) for node, module in graph.modules_called(model, nn.ReLU, nn.Hardtanh) if _is_relu(node, module)
    ]
    if not relus:
        raise UnsupportedError("The network has no ReLU to replace; modules of your own may need leaf= taken away.")
    sites = [Site(graph.key_of(node), str(node.target)) for node, _ in relus]
    percentiles = {} if calibration is None else _percentiles(model, sites, calibration, p)
    for node, _ in relus:
        key = graph.key_of(node)
        module = make(threshold=percentiles[key]) if percentiles else make()
        graph.replace_call(model, node, module, (node.args[0],), str(node.target))
    graph.refresh(model)
    return model.train(ann.training)


def max_to_average(
    ann: nn.Module, *, leaf: Iterable[str | type[nn.Module]] = (), skip: Iterable[str] = ()
) -> GraphModule:
    """Return a copy of ``ann`` with average pooling in the place of max-pooling, to be trained anew, with a warning.

    Average pooling is linear, so spikes need no special unit (Cao et al., 2015; also what Bu et al., 2022, train).
    """
    model = _modules_only(ann, leaf, skip)
    _average_pools(model)
    return model.train(ann.training)


def adapt_cao2015(
    ann: nn.Module, *, leaf: Iterable[str | type[nn.Module]] = (), skip: Iterable[str] = ()
) -> GraphModule:
    """Return a copy of ``ann`` that takes the magnitude of its input and pools by averages, to be trained anew.

    That is what can be rewritten of the networks that Cao et al. (2015) tailor for spikes; a warning names the pools.
    Biases and other activations cannot: ``check(..., recipe="cao2015_adapted")`` names them. Where inputs are never
    negative, ``max_to_average`` is enough, and the recipe is ``cao2015``.
    """
    model = _modules_only(ann, leaf, skip)
    _average_pools(model)
    for node in graph.inputs_of(model):
        users = list(node.users)
        with model.graph.inserting_after(node):
            magnitude = model.graph.call_function(torch.abs, (node,))
        for user in users:
            user.replace_input_with(node, magnitude)
    graph.refresh(model)
    return model.train(ann.training)


def _average_pools(model: GraphModule) -> None:
    """Put average pools in the place of max-pools, and warn of it."""
    replaced = []
    for node, module in graph.modules_called(model, *MAX_POOLS):
        replaced.append(graph.key_of(node))
        graph.replace_call(model, node, _average(module, replaced[-1]), (node.args[0],), str(node.target))
    graph.refresh(model)
    if replaced:
        shown = ", ".join(replaced[:4]) + (", ..." if len(replaced) > 4 else "")
        warn(f"Average pooling in the place of max-pooling is another function: train the network anew ({shown}).")


def _average(pool: Any, key: str) -> nn.Module:
    """Return the average pool of the same windows."""
    average = getattr(nn, type(pool).__name__.replace("Max", "Avg"))
    if "Adaptive" in type(pool).__name__:
        return average(pool.output_size)
    dilation = pool.dilation if isinstance(pool.dilation, tuple) else (pool.dilation,)
    require(
        set(dilation) == {1},
        f"{key} is a dilated max-pool, which has no average pool; set dilation=1.",
        UnsupportedError,
    )
    return average(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode)


def _modules_only(ann: nn.Module, leaf: Iterable[str | type[nn.Module]], skip: Iterable[str]) -> GraphModule:
    """Return the captured network with activations and pools as modules, layers as they are."""
    model = capture(ann, leaf=leaf, skip=skip)
    for name in REWRITES:
        passes.get(name).run(model)
    problems = refused(model)
    if problems:
        raise UnsupportedError("; ".join(map(str, problems)), problems)
    return model


def _is_relu(node: Node, module: Any) -> bool:
    return not graph.info(node).skip and (isinstance(module, nn.ReLU) or module.min_val == 0)


def _percentiles(model: GraphModule, sites: list[Site], calibration: Any, p: float) -> dict[str, float]:
    """Return {site key: the p-th percentile of its activations, 1 where there is none}."""
    with torch.inference_mode(), Observer(model, sites, PerLayer()) as observer:
        for batch in batches(calibration):
            model(*call_inputs(batch, None, device_of(model)))
    percentiles = {key: float(stats.quantile(p)) or float(stats.maximum) for key, stats in observer.stats.items()}
    return {key: value if value > 0 else 1.0 for key, value in percentiles.items()}
