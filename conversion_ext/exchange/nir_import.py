"""A NIR graph as a network of ours, in any backend."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from conversion_ext import graph
from conversion_ext.backends import Backend, get_backend
from conversion_ext.conversion.memory_format import channels_last
from conversion_ext.errors import Problem, UnsupportedError, optional_import, require
from conversion_ext.exchange.modules import Modules
from conversion_ext.exchange.nir_values import (
    compact,
    flattened,
    identifier,
    in_order,
    plain_value,
    shape_of,
    tensor_of,
    whole,
)
from conversion_ext.exchange.tensors import Tensors
from conversion_ext.graph.shapes import propagate
from conversion_ext.network.record import Record, installed_versions
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.network.state import reset
from conversion_ext.network.time import ExpandTime
from conversion_ext.neurons import IF, LIF, Filtered, Neuron
from conversion_ext.nn.channel_scale import ChannelScale
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.types import PerLayer, Reset, Steps

__all__ = ["from_nir"]


def from_nir(source: Any, *, backend: str | None = None, dt: float = 1e-4, reset: Reset = Reset.ZERO) -> SpikingNetwork:
    """Return a NIR graph as a network that ``simulate`` runs: one of ``to_nir`` spike for spike, others by rules.

    A step is Euler's: IF neurons add ``r dt`` times their current, or the current itself where r is 1 or 1 / dt, as
    tools in discrete time write it; LIF and CubaLIF decay by ``dt / tau``. Where the metadata do not tell otherwise,
    a spike resets to ``v_reset``, as NIR defines, neurons start there, and equality with the threshold is a spike.

    Args:
        source: A ``nir.NIRGraph``, or the path of a file that ``nir.write`` wrote: feed-forward, with Affine, Linear,
            Scale, Conv1d, Conv2d, SumPool2d, AvgPool2d, Flatten, IF, LIF, CubaLIF and graphs of these.
        backend: The framework of the neurons; by default the first installed.
        dt: Seconds of a step.
        reset: What a spike does where the metadata do not define it. NIR defines ``v_reset``; sinabs and snnTorch
            mostly subtract the threshold, ``Reset.SUBTRACT``, and their files have lost that.

    Raises:
        UnsupportedError: With every node that has no form here.
        MissingError: The package nir is not installed.
    """
    nir = optional_import("nir", "nir", "nir")
    made = nir.read(str(source), type_check=False) if isinstance(source, (str, Path)) else source
    what = type(made).__name__
    require(isinstance(made, nir.NIRGraph), f"A nir.NIRGraph or its file is read, not a {what}.", TypeError)
    require(dt > 0, f"dt={dt!r}: a step takes a positive number of seconds.")
    require(isinstance(reset, Reset), f"reset={reset!r}: use Reset.ZERO or Reset.SUBTRACT.")
    return _Import(nir, made, get_backend(backend), dt, reset).network()


class _Import:
    """The nodes of a NIR graph in the order of its edges, each written by the rule for its kind."""

    def __init__(self, nir: Any, source: Any, backend: Backend, dt: float, mode: Reset) -> None:
        self.nir, self.backend, self.mode = nir, backend, mode
        self.metadata = {key: plain_value(value) for key, value in (source.metadata or {}).items()}
        self.dt = float(self.metadata.get("dt", dt))
        self.nodes, self.edges = flattened(nir, source)
        self.graph = Graph()
        self.modules: dict[str, nn.Module] = {}
        self.values: dict[str, Node] = {}
        self.varying: set[Node] = set()  # what changes from step to step
        self.keys: list[str] = []
        self.neuron: Neuron = IF()

    def network(self) -> SpikingNetwork:
        """Return the network; raise UnsupportedError with all that has no form here."""
        order = in_order(self.nodes, self.edges)
        known = {getattr(self.nir, name) for name in (*RULES, "Input", "Output")}
        problems = [
            Problem(
                name, f"there is no form of a {type(node).__name__} here.", "See from_nir for those that there are."
            )
            for name, node in self.nodes.items()
            if type(node) not in known
        ]
        if problems:
            raise UnsupportedError("; ".join(map(str, problems)), tuple(problems))
        inputs = [name for name in order if isinstance(self.nodes[name], self.nir.Input)]
        for name in inputs:
            self.values[name] = self.graph.placeholder(identifier(name))
        self.steps = self.graph.placeholder("steps")
        for name in order:
            if name not in self.values:
                self.write(name, self.nodes[name])
        body = GraphModule(self.modules, self.graph, "NIR").eval()
        example = tuple(torch.zeros(1, *shape_of(self.nodes[name].input_type["input"])) for name in inputs)
        self.know(body, example)
        channels_last(body)
        snn: Any = self.backend.root(SpikingNetwork)(body, self.record()).eval()
        reset(snn)
        return snn

    def know(self, body: GraphModule, example: tuple[Tensor, ...]) -> None:
        """Note what reports and other verbs ask of nodes: keys and shapes."""
        shapes = propagate(body, (*example, Steps(1))).shapes
        for node in body.graph.nodes:
            graph.note(node, known=True, shape=shapes.get(node))

    def record(self) -> Record:
        """Return the record of a network that was read, not converted here."""
        name, recipe = "nir", Recipe(neuron=self.neuron, family=self.neuron.family)
        if "conversion_ext" in self.metadata:
            kept = json.loads(self.metadata["conversion_ext"])
            name, recipe = kept["name"], Modules(Tensors()).values.read(kept["recipe"])
        versions = installed_versions("conversion-ext", "torch", "nir", "spikingjelly", "snntorch")
        return Record(name, None, self.backend.name, True, 0, tuple(self.keys), (), versions, recipe)

    def write(self, name: str, node: Any) -> None:
        """Write one node of NIR, all that reaches it added up."""
        sources = [self.values[source] for source, target in self.edges if target == name]
        require(bool(sources), f"Nothing reaches the NIR node {name!r}.", UnsupportedError)
        if any(x in self.varying for x in sources):
            sources = [x if x in self.varying else self.repeated(x) for x in sources]
        x = sources[0]
        for other in sources[1:]:
            x = self.call(torch.add, x, other)
        if isinstance(node, self.nir.Output):
            self.graph.output(x)
            self.values[name] = x
            return
        made = RULES[type(node).__name__](self, name, node)
        for part in made if isinstance(made, list) else [made]:
            if isinstance(part, SpikingSite):
                part.static_input = x not in self.varying
                x = self.call(self.held(name, part), x, self.steps)
                self.varying.add(x)
            else:
                x = self.call(self.held(name, part), x)
            graph.note(x, key=self.key(name))
        self.values[name] = x

    def held(self, name: str, module: nn.Module) -> str:
        """Add a module and return where it is."""
        path = identifier(name)
        while path in self.modules:
            path += "_"
        self.modules[path] = module
        return path

    def call(self, target: Any, x: Node, *others: Node) -> Node:
        """Return a call of a function or of the module at a path; it changes over time if what it reads does."""
        op = "call_module" if isinstance(target, str) else "call_function"
        node = self.graph.create_node(op, target, (x, *others))
        if not self.varying.isdisjoint((x, *others)):
            self.varying.add(node)
        return node

    def repeated(self, x: Node) -> Node:
        """Return a value that does not depend on time for every step, to be added to one that does."""
        node = self.graph.call_module(self.held(f"{x.name}_in_time", ExpandTime()), (x, self.steps))
        self.varying.add(node)
        return node

    def key(self, name: str) -> str:
        """Return the path under which reports name a node."""
        return str(plain_value((self.nodes[name].metadata or {}).get("key", name)))

    def site(self, name: str, spec: Neuron, start: Tensor) -> SpikingSite:
        """Return folded neurons that start from ``start``, in thresholds, [] or [C, ...]."""
        key = self.key(name)
        self.keys.append(key)
        self.neuron = spec
        site = SpikingSite(key, spec, self.backend, torch.ones(()), PerLayer())
        site.scaled = False
        site.v_init = start
        return site


Rule = Callable[[_Import, str, Any], Any]


def _affine(reader: _Import, name: str, node: Any) -> nn.Module:
    weight, bias = node.weight, getattr(node, "bias", None)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    return _with(layer, weight, bias)


def _convolution(reader: _Import, name: str, node: Any) -> nn.Module:
    dims = node.weight.ndim - 2
    kind = nn.Conv1d if dims == 1 else nn.Conv2d
    groups = int(node.groups)
    padding = node.padding if isinstance(node.padding, str) else whole(node.padding)
    layer = kind(
        node.weight.shape[1] * groups, node.weight.shape[0], node.weight.shape[2:], whole(node.stride), padding,
        whole(node.dilation), groups,
    )  # fmt: skip
    return _with(layer, node.weight, node.bias)


def _with(layer: Any, weight: np.ndarray, bias: np.ndarray | None) -> nn.Module:
    layer.weight = nn.Parameter(tensor_of(weight), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(tensor_of(bias), requires_grad=False)
    return layer


def _scale(reader: _Import, name: str, node: Any) -> nn.Module:
    scale = tensor_of(node.scale)
    first = scale.reshape(len(scale), -1)[:, :1] if scale.dim() else scale
    if scale.dim() > 1 and bool((scale.reshape(len(scale), -1) == first).all()):
        scale = first.reshape(-1, *[1] * (scale.dim() - 1))
    return ChannelScale(scale[None])


def _pool(reader: _Import, name: str, node: Any) -> nn.Module:
    divisor = 1 if type(node).__name__ == "SumPool2d" else None
    return nn.AvgPool2d(whole(node.kernel_size), whole(node.stride), whole(node.padding), divisor_override=divisor)


def _flatten(reader: _Import, name: str, node: Any) -> nn.Module:
    start, end = int(node.start_dim), int(node.end_dim)
    return nn.Flatten(start + 1 if start >= 0 else start, end + 1 if end >= 0 else end)


def _neuron(reader: _Import, name: str, node: Any) -> list[nn.Module]:
    """IF, LIF or CubaLIF: a scale where currents are not in thresholds, and the site."""
    kind = type(node).__name__
    threshold, rest, r = (tensor_of(v) for v in (node.v_threshold, node.v_reset, node.r))
    about = {key: plain_value(value) for key, value in (node.metadata or {}).items()}
    if kind != "IF":
        leak = tensor_of(node.v_leak)
        require(
            torch.equal(leak, rest),
            f"The NIR node {name!r} leaks to {leak.flatten()[0]:.4g} and resets to {rest.flatten()[0]:.4g}; one "
            "potential for both can be read.",
            UnsupportedError,
        )
    height = threshold - rest
    require(bool((height > 0).all()), f"The NIR node {name!r} resets to or above its threshold.", UnsupportedError)
    mode = Reset(str(about["reset"])) if "reset" in about else reader.mode
    spec, gain = _dynamics(reader, name, kind, node, r, mode)
    if isinstance(spec, IF):
        floor = about.get("floor")
        spec = replace(spec, strict=about.get("spike") == ">", floor=None if floor is None else float(floor))
    start = tensor_of(np.asarray(about["v_init"])) if "v_init" in about else rest
    site = reader.site(name, spec, compact((start - rest) / height))
    scale = gain / height
    return [site] if bool((scale == 1).all()) else [ChannelScale(compact(scale)[None]), site]


def _dynamics(reader: _Import, name: str, kind: str, node: Any, r: Tensor, mode: Reset) -> tuple[Neuron, Tensor]:
    """Return the neuron in steps and what its current is multiplied by."""
    one = torch.ones_like(r)
    if kind == "IF":
        plain = bool(((r - 1).abs() < 1e-6).all()) or bool(((r * reader.dt - 1).abs() < 1e-6).all())
        return IF(0.0, mode), one if plain else r * reader.dt
    tau = _uniform(name, node.tau if kind == "LIF" else node.tau_mem) / reader.dt
    require(
        tau > 1,
        f"The NIR node {name!r} has a time constant of {tau * reader.dt:.3g} s, no longer than the step of "
        f"{reader.dt:.3g} s; give from_nir the dt= with which it was written (norse writes dt times what it means).",
        UnsupportedError,
    )
    if tau >= 2**24:
        spec, gain = IF(0.0, mode), r / tau
    else:
        spec, gain = LIF(v_init=0.0, tau=tau, decay_input=True, reset=mode), r
        if bool(((r - tau).abs() <= 1e-6 * tau).all()):
            spec, gain = LIF(v_init=0.0, tau=tau, decay_input=False, reset=mode), one
    if kind == "LIF":
        return spec, gain
    share = reader.dt / _uniform(name, node.tau_syn)
    require(0 < share < 1, f"The NIR node {name!r} has a synapse faster than a step.", UnsupportedError)
    return Filtered(spec, tau=float(-1 / np.log1p(-share))), gain * tensor_of(node.w_in)


def _uniform(name: str, value: Any) -> float:
    values = np.unique(np.asarray(value))
    several = f"The NIR node {name!r} has several time constants; one per node is read."
    require(len(values) == 1, several, UnsupportedError)
    return float(values[0])


RULES: dict[str, Rule] = {
    "Affine": _affine, "Linear": _affine, "Conv1d": _convolution, "Conv2d": _convolution, "Scale": _scale,
    "AvgPool2d": _pool, "SumPool2d": _pool, "Flatten": _flatten, "IF": _neuron, "LIF": _neuron, "CubaLIF": _neuron,
}  # fmt: skip
