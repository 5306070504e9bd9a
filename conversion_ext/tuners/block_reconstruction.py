"""Blocks of a network reconstructed one after the other: weights are trained on the output of whole spike trains."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.data.distributed import added, all_or_none, gathered, rank
from conversion_ext.data.inputs import device_of
from conversion_ext.data.progress import bar
from conversion_ext.errors import CalibrationError, require
from conversion_ext.exact import bytes_of
from conversion_ext.network.differentiation import SurrogateStepping
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.state import reset
from conversion_ext.neurons import SignedEncoder
from conversion_ext.tuners.base import Tuner, register_tuner
from conversion_ext.tuners.blocks import Block, blocks_of
from conversion_ext.tuners.tensor_store import TensorStore
from conversion_ext.tuners.walk import Task
from conversion_ext.types import Steps

__all__ = ["BlockReconstruction"]

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
HELD_OUT = 8  # one of so many parts of the data judges, the others are learned from
SMALL = 0.1  # how fast potentials and biases move beside weights, in units of the threshold and of the layer's output


@dataclass(frozen=True, kw_only=True)
class BlockReconstruction(Tuner):
    """Descend, block by block, on ``E |1/T sum_t o_t - a|^2``: a block in T steps against the ANN.

    A block lies between two places where one value alone passes, such as a residual block or a linear bottleneck. Its
    input are the spike trains that the reconstructed blocks before it send, its gradient goes through all steps (arctan
    as surrogate), so what it learns away includes the unevenness of trains, which corrections of single layers see as
    given. Use it, behind ``WeightCompensation``, where T must be the latency and minutes may be spent.

    ``steps`` steps of Adam on ``batch`` calibration samples each; ``rate`` is relative to the root mean square of a
    layer's weights and falls to 0 on a cosine. One of eight parts of the data is not learned from: a block that does
    not come closer to the ANN there is left as it was. Changes weights and biases of convolutions and linear layers
    that are called once, and initial potentials of neurons. No labels. Several processes share the work in turn.

    Reference: Li et al., ICLR 2021 (BRECQ, for quantized weights); Deng, Gu, ICLR 2021 (layer by layer, for spikes).
    """

    steps: int = 150
    batch: int = 32
    rate: float = 0.01

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("batch", self.batch)):
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            require(whole, f"BlockReconstruction({name}={value!r}): give an integer >= 1.")
        require(
            isinstance(self.rate, Real) and 0 < self.rate < torch.inf,
            f"BlockReconstruction(rate={self.rate!r}): give a positive number, relative to the size of weights.",
        )

    def tune_network(self, task: Task) -> None:
        """Reconstruct every block of ``task.body``, in place."""
        with TensorStore() as store:
            _Reconstruction(self, task, store).run()


class _Reconstruction:
    """The blocks in order, and in the store what enters the next of them, for every part of the data."""

    def __init__(self, tuner: BlockReconstruction, task: Task, store: TensorStore) -> None:
        self.tuner, self.task, self.store = tuner, task, store
        self.steps = Steps(task.T // task.block, constant=True, block=task.block)
        self.device = device_of(task.body)
        digests = all_or_none(self._read)
        places = sorted((each, number, i) for number, its in enumerate(gathered(digests)) for i, each in enumerate(its))
        require(len(places) > 0, "The calibration data holds no batch; pass at least one.", CalibrationError)
        # {number among all parts, which their content decides: own part}
        self.own = {n: i for n, (_, process, i) in enumerate(places) if process == rank()}
        numbers = range(len(places))
        self.judges = [n for n in numbers if n % HELD_OUT == HELD_OUT - 1] or list(numbers[-1:])
        self.learned = [n for n in numbers if n not in self.judges] or list(numbers)
        *self.placeholders, self.steps_node = (n for n in task.body.graph.nodes if n.op == "placeholder")
        self.inputs = [n for n in task.ann.graph.nodes if n.op == "placeholder"]

    def _read(self) -> list[bytes]:
        """Put the inputs in the store in parts of a batch each; return a digest of each."""
        digests = list[bytes]()
        for batch in self.task.batches:
            for values in zip(*[v.split(self.tuner.batch) for v in self.task.inputs(batch)], strict=True):
                digest = hashlib.sha256()
                for index, value in enumerate(values):
                    self.store["input", index, len(digests)] = value
                    digest.update(bytes_of(value))
                digests.append(digest.digest())
        return digests

    def run(self) -> None:
        """Reconstruct block after block."""
        sites = [site for _, site in graph.modules_called(self.task.body, SpikingSite)]
        before = [site.stepping for site in sites]
        for site in sites:
            site.stepping = SurrogateStepping()
        try:
            pairs = blocks_of(self.task.ann, self.task.body)
            for body, ann in bar(pairs, "blocks", self.task.progress):
                self._advance_ann(ann)
                self._reconstruct(body)
                self._advance_body(body)
        finally:
            for site, stepping in zip(sites, before, strict=True):
                site.stepping = stepping
            reset(self.task.body)

    @torch.no_grad()
    def _advance_ann(self, block: Block) -> None:
        for part in self.own.values():
            self.store["ann", part] = block.run(self._known(block, "ann", part, self.inputs))

    @torch.no_grad()
    def _advance_body(self, block: Block) -> None:
        site = graph.module_of(block.model, block.end)
        for part in self.own.values():
            value = self._emitted(block, part)
            if isinstance(site, SpikingSite) and _in_bytes(site, self.steps):
                worth = site.amplitude(value.dim() - 1) if site.scaled else torch.ones(())
                value = (value * self.steps.block / worth).round().to(torch.int8)
            self.store["body", part] = value.flatten(0, 1)

    def _known(self, block: Block, lane: str, part: int, inputs: Iterable[Node]) -> dict[Node, Any]:
        """Return the values that a block reads, of one part of the data."""
        if block.start is None:
            known = {node: self.store["input", i, part] for i, node in enumerate(inputs)}
        else:
            value, site = self.store[lane, part], graph.module_of(block.model, block.start)
            if isinstance(site, SpikingSite) and value.dtype is torch.int8:
                value = site.emitted(value.to(site.threshold.dtype) / self.steps.block)
            known = {block.start: value}
        return {node: _channels_last(value) for node, value in known.items()}

    def _emitted(self, block: Block, part: int) -> Tensor:
        """Return what a block of the body emits, [T, N, ...]."""
        reset(block.model)
        value = block.run(self._known(block, "body", part, self.placeholders) | {self.steps_node: self.steps})
        reset(block.model)
        return value.unflatten(0, (self.steps.T, -1))

    def _error(self, block: Block, part: int) -> Tensor:
        target = self.store["ann", part]
        return (self._emitted(block, part).mean(0) - target).square().mean() / target.square().mean().clamp_min(1e-12)

    @torch.no_grad()
    def _judged(self, block: Block) -> float:
        """Return the error on the parts that are not learned from, of all processes."""
        errors = [self._error(block, self.own[n]) for n in self.judges if n in self.own]
        return float(added(sum(errors, torch.zeros((), dtype=torch.float64)).double()))

    def _reconstruct(self, block: Block) -> None:
        """Descend with what a block may change, and take it back where the block does not come closer."""
        learner = _Learner(block, self._sizes(block))
        if not learner.groups:
            return
        before = self._judged(block)
        adam = torch.optim.Adam(learner.groups)
        generator = torch.Generator().manual_seed(0)
        order = torch.randint(len(self.learned), (self.tuner.steps,), generator=generator).tolist()
        for step, place in enumerate(order):
            factor = self.tuner.rate * (1 + math.cos(math.pi * step / self.tuner.steps)) / 2
            for group in adam.param_groups:
                group["lr"] = factor * group["size"]
            self._differentiate(block, self.own.get(self.learned[place]), learner.parameters)
            adam.step()
        learner.settle(keep=self._judged(block) < before)

    def _differentiate(self, block: Block, part: int | None, parameters: list[nn.Parameter]) -> None:
        """Put the gradient of the error on a part, which one process has, into the parameters of all."""
        gradients = [None] * len(parameters)
        if part is not None:
            with torch.enable_grad():
                gradients = torch.autograd.grad(self._error(block, part), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = added(torch.zeros_like(parameter) if gradient is None else gradient)

    @torch.no_grad()
    def _sizes(self, block: Block) -> dict[Node, float]:
        """Return {layer: root mean square of its output} on a part of the data, the same in all processes."""
        layers = [node for node in block.nodes if isinstance(graph.module_of(block.model, node), LAYERS)]
        sizes = dict[Node, float]()

        def see(node: Node) -> Any:
            return lambda module, args, y: sizes.update({node: float(y.square().mean().sqrt())})

        handles = [block.model.get_submodule(str(n.target)).register_forward_hook(see(n)) for n in layers]
        if 0 in self.own:
            self._emitted(block, self.own[0])
        for handle in handles:
            handle.remove()
        everywhere = gathered([sizes[node] for node in layers] if sizes else [])
        return dict(zip(layers, max(everywhere, key=len), strict=True))


class _Learner:
    """What a block may change: ``groups`` of an optimizer, each with its ``size``, relative to which it moves."""

    def __init__(self, block: Block, outputs: Mapping[Node, float]) -> None:
        self.groups = list[dict[str, Any]]()
        self.sites = list[SpikingSite]()
        for node in block.nodes:
            module: Any = graph.module_of(block.model, node)
            if isinstance(module, LAYERS) and _is_alone(block.model, module):
                self._add(module.weight, float(module.weight.detach().square().mean().sqrt()))
                if module.bias is not None:
                    self._add(module.bias, SMALL * outputs[node])
            elif isinstance(module, SpikingSite) and not isinstance(module.spec, SignedEncoder):
                start = nn.Parameter(module.v_init.detach().clone())
                del module.v_init
                module.register_parameter("v_init", start)
                self.sites.append(module)
                self._add(start, SMALL)
        self.flags = [p.requires_grad for p in self.parameters]
        self.start = [p.detach().clone() for p in self.parameters]
        for parameter in self.parameters:
            parameter.requires_grad_()

    def _add(self, parameter: Any, size: float) -> None:
        if size > 0:
            self.groups.append({"params": [parameter], "size": size})

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that moves."""
        return [group["params"][0] for group in self.groups]

    @torch.no_grad()
    def settle(self, keep: bool) -> None:
        """End the learning: values stay, or are again what they were."""
        for parameter, value, flag in zip(self.parameters, self.start, self.flags, strict=True):
            if not keep:
                parameter.copy_(value)
            parameter.grad = None
            parameter.requires_grad_(flag)
        for site in self.sites:
            value = site.v_init.detach()
            del site.v_init
            site.register_buffer("v_init", value)


def _is_alone(model: GraphModule, module: nn.Module) -> bool:
    """Return whether a layer is called once and shares no weights."""
    calls = sum(node.op == "call_module" and graph.module_of(model, node) is module for node in model.graph.nodes)
    owners = [id(p) for other in model.modules() for p in other.parameters(recurse=False)]
    return calls == 1 and all(owners.count(id(p)) == 1 for p in module.parameters(recurse=False))


def _in_bytes(site: SpikingSite, steps: Steps) -> bool:
    """Return whether what a site sends in a block of steps is a small whole number of spikes."""
    return site.largest * steps.block < 128


def _channels_last(value: Any) -> Any:
    """Return images in the memory format that convolutions on a CPU like; other values as they are."""
    images = isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point()
    return value.contiguous(memory_format=torch.channels_last) if images else value


register_tuner("block_reconstruction", BlockReconstruction)
