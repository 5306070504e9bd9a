"""What the ANN answers, without a trace of the question left in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from conversion_ext import graph
from conversion_ext.data.inputs import called_with
from conversion_ext.errors import CalibrationError
from conversion_ext.graph.values import map_tensors, tensors_in
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.nn.differential import Differential
from conversion_ext.simulation.samples import Batch

__all__ = ["answers", "ends_in_sigmoid", "evaluating"]


@contextmanager
def evaluating(ann: nn.Module) -> Iterator[nn.Module]:
    """Put ``ann`` into evaluation mode; in the end every module, a frozen BatchNorm too, has its own mode again."""
    modes = {module: module.training for module in ann.modules()}
    try:
        yield ann.eval()
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def answers(ann: nn.Module, batch: Batch) -> Any:
    """Return the output [N, ...] of ``ann``; of a sequence of frames the mean of its outputs over the frames."""
    if not batch.sequence:
        return _run(ann, batch.inputs)
    outputs = _run(ann, batch.samples())
    return map_tensors(outputs, lambda value: value.unflatten(0, (-1, len(batch))).mean(0))


def _run(ann: nn.Module, inputs: tuple[Any, ...]) -> Any:
    try:
        return called_with(ann, inputs)
    except Exception as error:
        shapes = " and ".join(str(list(value.shape)) for value in tensors_in(inputs))
        why = str(error).strip().partition("\n")[0].rstrip(".")
        raise CalibrationError(
            f"ann fails on a batch of shape {shapes}: {why}. Pass the network that was converted, and its data."
        ) from error


def ends_in_sigmoid(snn: SpikingNetwork) -> bool:
    """Whether the output of the network is that of a sigmoid, a probability."""
    (output,) = (node for node in snn.body.graph.nodes if node.op == "output")
    if len(output.all_input_nodes) != 1:
        return False
    module = graph.module_of(snn.body, output.all_input_nodes[0])
    function = module.function if isinstance(module, Differential) else module
    target = getattr(function, "target", function)
    return isinstance(target, nn.Sigmoid) or target in (torch.sigmoid, nn.functional.sigmoid, "sigmoid")
