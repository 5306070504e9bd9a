"""A converted network as a NIR graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from conversion_ext import graph
from conversion_ext.errors import Problem, UnsupportedError, require
from conversion_ext.exchange.modules import Modules
from conversion_ext.exchange.packages import package
from conversion_ext.exchange.readers import Reader, reader_of
from conversion_ext.exchange.tensors import Tensors
from conversion_ext.graph.layers import ADAPTIVE_AVERAGE_POOLS, WEIGHTS
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.spiking_network import Root
from conversion_ext.network.time import ExpandTime
from conversion_ext.neurons import IF, LIF, PLIF
from conversion_ext.nn.channel_scale import ChannelScale
from conversion_ext.operators.arithmetic import Sum
from conversion_ext.operators.base import operator_of
from conversion_ext.operators.movement import Movement
from conversion_ext.operators.per_channel import PerChannelMap

__all__ = ["to_nir"]

DT = 1e-4  # seconds of a step, as the readers take it
NEARLY_IF = 1e9  # time constant in steps whose leak float32 rounds to none


def to_nir(snn: Root, *, reader: str | None = None, T: int | None = None) -> Any:
    """Return a folded network as a ``nir.NIRGraph``, which ``nir.write`` puts into an HDF5 file.

    NIR's IF neuron knows neither soft reset nor an initial potential. Both stand in its metadata, from which ``from_nir``
    builds the same network, spike for spike. Other packages lose them; ``reader`` writes pools, resistances, thresholds,
    flatten axes and scales (as 1 x 1 convolutions) as each of them reads them. With ``T`` their biases also hold
    ``v_init / T``, after which the counts of T steps are right where the reset is soft, though not their times. A
    network of hard reset and ``v_init=0`` is exact in SpikingJelly, snnTorch and norse.

    Args:
        snn: What ``convert`` returned, folded: weight layers, sums, average pools, flattening, IF and LIF neurons.
        reader: "spikingjelly", "snntorch", "sinabs", "norse" or "spinnaker2"; None for ``from_nir``.
        T: The number of steps for which initial potentials go into the biases, where the reader loses them.

    Raises:
        UnsupportedError: With every place that NIR has no node for: max-pools, graded functions, concatenations, ...
        BackendError: The package nir is not installed.

    Reference: Pedersen et al., Nat. Commun. 2024 (NIR).
    """
    require(
        isinstance(snn, Root), f"snn is a {type(snn).__name__}; pass what conversion_ext.convert returned.", TypeError
    )
    require(
        T is None or (isinstance(T, int) and T >= 1), f"T={T!r}: the number of steps to write for is an integer >= 1."
    )
    require(snn.conversion.folded, "NIR's neurons have no scales; convert with fold=True.")
    require(
        snn.conversion.widths is None,
        "NIR has no rounding, so a network in integers is none of its graphs; export the one from which it was made, "
        "or hand over conversion_ext.integer.parameters(snn).",
    )
    return _Export(snn, reader_of(reader), T).graph()


@dataclass(frozen=True)
class Value:
    """What a node of the body is in NIR: the sum of what these nodes emit, ``1 / divisor`` of which is meant."""

    sources: tuple[str, ...]
    divisor: float = 1.0


class _Export:
    """One walk over the body; every node is written by the first rule that knows it."""

    def __init__(self, snn: Root, reader: Reader, T: int | None) -> None:
        self.snn, self.reader, self.T = snn, reader, T
        self.nir = package("nir")
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.values: dict[Node, Value] = {}
        self.problems: list[Problem] = []

    def graph(self) -> Any:
        """Return the graph; raise UnsupportedError with all that has no node."""
        body = self.snn.body
        steps = graph.steps_of(body)
        for node in body.graph.nodes:
            sources = [s for s in node.all_input_nodes if s is not steps]
            if node is steps or any(s not in self.values for s in sources):
                continue  # the time axis, or behind a problem
            if node.op == "placeholder":
                self.values[node] = self.add(node, self.nir.Input({"input": self.shape(node)}), ())
            elif node.op == "output":
                self.write_output(node)
            else:
                self.write(node)
        if self.problems:
            listed = "; ".join(map(str, self.problems))
            raise UnsupportedError(f"NIR has no form of this network: {listed}", tuple(self.problems))
        made = self.nir.NIRGraph(self.nodes, self.edges, metadata=self.metadata(), type_check=False)
        if not self.reader.flattens_batch:
            made.infer_types()
            made.check_types()
        return made

    def metadata(self) -> dict[str, Any]:
        """Return what ``from_nir`` needs to decode as this network does."""
        if not self.reader.metadata:
            return {}
        recipe = Modules(Tensors()).values.write(self.snn.conversion.recipe)
        return {"conversion_ext": json.dumps({"recipe": recipe, "name": self.snn.record.recipe}), "dt": 1.0}

    def write(self, node: Node) -> None:
        """Write one node of the body, or note the problem."""
        module = graph.module_of(self.snn.body, node)
        operator = operator_of(self.snn.body, node)
        rule = next((rule for kind, rule in RULES.items() if isinstance(module, kind)), None)
        if rule is None:
            rule = next((rule for kind, rule in OPERATORS.items() if type(operator) is kind), _refused)
        value = rule(self, node, module)
        if value is not None:
            self.values[node] = value

    def write_output(self, node: Node) -> None:
        """Write the output, of which NIR has one or more."""
        if len(node.all_input_nodes) != 1 or not isinstance(node.args[0], Node):
            self.problem(node, "it returns several values.", "Return one tensor.")
            return
        (source,) = node.all_input_nodes
        self.add(node, self.nir.Output({"output": self.shape(source)}), self.settled(source).sources)

    def problem(self, node: Node, reason: str, remedy: str) -> None:
        """Note why ``node`` cannot be written."""
        self.problems.append(Problem(graph.key_of(node), reason, remedy, graph.describe(node)))

    def shape(self, node: Node) -> tuple[int, ...]:
        """Return the shape of the value of ``node`` without the batch."""
        return tuple(graph.info(node).shape[1:])

    def add(self, node: Node, written: Any, sources: tuple[str, ...], suffix: str = "") -> Value:
        """Add a NIR node that reads ``sources`` and return its value."""
        name = graph.key_of(node).replace(".", "_").replace("#", "_") + suffix
        name = name if name.isidentifier() else "n" + "".join(c if c.isalnum() else "_" for c in name)
        while name in self.nodes:
            name += "_"
        written.metadata = {**(written.metadata or {}), "key": graph.key_of(node)}
        self.nodes[name] = written
        self.edges += [(source, name) for source in sources]
        return Value((name,))

    def settled(self, node: Node) -> Value:
        """Return the value of ``node`` without a divisor: where it has one, a scale is written."""
        value = self.values[node]
        if value.divisor != 1:
            factor = torch.tensor(1 / value.divisor)
            self.values[node] = self.scale(node, factor, value.sources, "_divided")
        return self.values[node]

    def scale(self, node: Node, factor: Tensor, sources: tuple[str, ...], suffix: str = "") -> Value:
        """Write a multiplication by ``factor`` [1, C, ...] as what the reader knows."""
        shape = self.shape(node)
        full = factor.detach().float().expand(1, *shape)[0]
        if self.reader.scales:
            return self.add(node, self.nir.Scale(_numbers(full.contiguous())), sources, suffix)
        channels = full.flatten(1)[:, 0] if full.dim() > 1 else full
        if not bool((full == channels.reshape(-1, *[1] * (full.dim() - 1))).all()):
            self.problem(node, "it scales every element by itself.", "Scale channels only.")
        return self.diagonal(node, channels, shape, sources, suffix)

    def diagonal(self, node: Node, gains: Tensor, shape: tuple[int, ...], sources: Any, suffix: str) -> Value:
        """Write a weight layer that multiplies each channel by its own number."""
        weight, bias = torch.diag(gains), torch.zeros(len(gains))
        if len(shape) == 1:
            return self.add(node, self.nir.Affine(_numbers(weight), _numbers(bias)), sources, suffix)
        kernel = [1] * (len(shape) - 1)
        weight = weight.reshape(*weight.shape, *kernel)
        return self.add(node, self.convolution(shape[1:], weight, bias, [1], [0], [1], 1), sources, suffix)

    def convolution(
        self, size: Any, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Any:
        """Return a Conv1d or Conv2d of NIR."""
        dims = weight.dim() - 2
        if groups > 1 and not self.reader.groups:
            weight, groups = _dense(weight, groups), 1
        bias = torch.zeros(len(weight)) if bias is None else bias
        whole = [tuple(v * dims if len(v) == 1 else v) for v in (list(stride), list(padding), list(dilation))]
        if dims == 1:
            numbers = [v[0] for v in whole]
            return self.nir.Conv1d(size[0], _numbers(weight), *numbers, groups, _numbers(bias))
        return self.nir.Conv2d(tuple(size), _numbers(weight), *whole, groups, _numbers(bias))


Rule = Callable[[_Export, Node, Any], Value | None]


def _refused(export: _Export, node: Node, module: Any) -> None:
    target = node.target
    kind = type(module).__name__ if module is not None else getattr(target, "__name__", target)
    export.problem(
        node,
        f"NIR has no node for {kind}.",
        "It has weight layers, sums, average pools and flattening: use max_pool=... only where average pooling will "
        "not do, ReLU in the place of other activations, and no concatenation.",
    )


def _linear(export: _Export, node: Node, layer: nn.Linear) -> Value | None:
    source = node.all_input_nodes[0]
    if len(export.shape(source)) != 1:
        export.problem(node, "NIR's Affine takes vectors.", "Flatten before it.")
        return None
    value = export.values[source]
    weight = layer.weight / value.divisor
    bias: Any = getattr(layer, "bias", None)  # torch's types deny that it may be None
    bias = torch.zeros(layer.out_features) if bias is None else bias
    return export.add(node, export.nir.Affine(_numbers(weight), _numbers(bias)), value.sources)


def _convolution(export: _Export, node: Node, layer: Any) -> Value | None:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        export.problem(node, f"NIR pads with zeros by numbers, not {layer.padding!r} ({layer.padding_mode}).",
                       "Give padding as numbers, of zeros.")  # fmt: skip
        return None
    source = node.all_input_nodes[0]
    value = export.values[source]
    written = export.convolution(
        export.shape(source)[1:], layer.weight / value.divisor, layer.bias, layer.stride, layer.padding,
        layer.dilation, layer.groups,
    )  # fmt: skip
    return export.add(node, written, value.sources)


def _pool(export: _Export, node: Node, module: Any) -> Value | None:
    """Average pools with windows of one size, means over all positions among them."""
    source = node.all_input_nodes[0]
    size = export.shape(source)[1:]
    window = _window(module, size, export.shape(node)[1:])
    if len(size) != 2 or window is None:
        export.problem(node, "NIR averages over windows of one size in two dimensions.",
                       "Use nn.AvgPool2d with a kernel that divides the size.")  # fmt: skip
        return None
    kernel, stride, padding = (np.array(v) for v in window)
    if not export.reader.averages and padding.any():
        export.problem(node, "this reader's pools have no padding.", "Use nn.AvgPool2d without padding.")
        return None
    value = export.values[source]
    kind = export.nir.AvgPool2d if export.reader.averages else export.nir.SumPool2d
    divisor = value.divisor * (1 if export.reader.averages else int(kernel.prod()))
    pooled = export.add(node, kind(kernel, stride, padding), value.sources)
    if len(export.shape(node)) == 1:
        pooled = _flattened(export, node, (export.shape(source)[0], 1, 1), pooled.sources)
    return Value(pooled.sources, divisor)


def _window(module: Any, size: tuple[int, ...], out: tuple[int, ...]) -> Any:
    """Return (kernel, stride, padding) of an average pool or a mean; None where its windows are unequal."""
    if isinstance(module, nn.AvgPool2d):
        plain = not module.ceil_mode and module.divisor_override is None
        kernel, stride, padding = ((v, v) if isinstance(v, int) else tuple(v)
                                   for v in (module.kernel_size, module.stride, module.padding))  # fmt: skip
        return (kernel, stride, padding) if plain and (module.count_include_pad or not any(padding)) else None
    out = out or (1, 1)
    if len(size) != 2 or len(out) != 2 or any(a % b for a, b in zip(size, out, strict=True)):
        return None
    kernel = tuple(a // b for a, b in zip(size, out, strict=True))
    return kernel, kernel, (0, 0)


def _site(export: _Export, node: Node, site: SpikingSite) -> Value | None:
    spec, shape = site.spec.holding(site.neuron), export.shape(node)
    if not isinstance(spec, IF | LIF | PLIF) or type(spec) not in (IF, LIF, PLIF) or not site.stepping.plain:
        what = site.spec if site.stepping.plain else type(site.stepping).__name__
        export.problem(node, f"NIR has no neuron like {what!r}.", "Use a recipe of IF or LIF neurons, stepped plainly.")
        return None
    source = node.args[0]
    assert isinstance(source, Node)
    value = export.settled(source)
    start = site.v_init.detach().float().expand(1, *shape)[0]
    current = site.bias.detach().float() / site.threshold.float() if site.bias.dim() else torch.zeros(())
    if not export.reader.metadata and export.T is not None:
        current = current + _per_channel(start) / export.T
    if bool(current.any()) and not _biased(export, node, current):
        return None
    written = _neuron(export, spec, shape)
    if export.reader.metadata:
        written.metadata = {"reset": str(spec.reset.value), "v_init": _numbers(start.contiguous()), "spike": ">="}
    return export.add(node, written, value.sources)


def _neuron(export: _Export, spec: IF | LIF | PLIF, shape: tuple[int, ...]) -> Any:
    reader, nir = export.reader, export.nir
    full = lambda value: np.full(shape, value, dtype=np.float32)  # noqa: E731
    threshold = full(np.nextafter(np.float32(1), np.float32(0)) if reader.strict else 1)
    beta = float(spec.beta) if isinstance(spec, PLIF) else 1.0
    if isinstance(spec, IF) or (isinstance(spec, PLIF) and beta == 1):
        if not reader.leaky:
            return nir.IF(full(reader.r), threshold, full(0))
        return nir.LIF(full(NEARLY_IF * DT), full(reader.r), full(0), threshold, full(0))
    dt = 1.0 if reader.metadata else DT
    tau = spec.tau if isinstance(spec, LIF) else 1 / (1 - beta)
    decays = isinstance(spec, LIF) and spec.decay_input
    return nir.LIF(full(tau * dt), full(1 if decays else tau), full(0), threshold, full(0))


def _per_channel(value: Tensor) -> Tensor:
    """Return one number per channel where ``value`` [C, ...] has no more, else ``value``."""
    flat = value.reshape(len(value), -1)
    return flat[:, 0] if bool((flat == flat[:, :1]).all()) else value


def _biased(export: _Export, node: Node, current: Tensor) -> bool:
    """Add ``current`` [] or [C] to the bias of a weight layer in front that no other node reads."""
    layer = next(_layers_of(export, node.args[0]), None) if current.dim() <= 1 else None
    if layer is None:
        export.problem(
            node,
            "its initial potential, or a bias of its own, belongs into the bias of a weight layer in front, and "
            "there is none that this site alone reads.",
            "Leave out T=, or use a recipe with v_init=0 and without tuners of sites.",
        )
        return False
    layer.bias = (layer.bias + _numbers(current)).astype(np.float32)
    return True


def _layers_of(export: _Export, node: Any) -> Iterator[Any]:
    """Iterate over the weight layers whose sum ``node`` is, as far as one node alone reads them."""
    if len(node.users) > 1:
        return
    if type(operator_of(export.snn.body, node)) is Sum:
        for operand in node.args:
            yield from _layers_of(export, operand)
    elif isinstance(graph.module_of(export.snn.body, node), WEIGHTS):
        yield export.nodes[export.values[node].sources[0]]


def _scale(export: _Export, node: Node, module: ChannelScale) -> Value:
    source = node.all_input_nodes[0]
    value = export.values[source]
    return export.scale(node, module.scale / value.divisor, value.sources)


def _sum(export: _Export, node: Node, module: Any) -> Value | None:
    if node.kwargs.get("alpha", 1) != 1 or len(node.args) < 2 or not all(isinstance(a, Node) for a in node.args):
        export.problem(node, "it is no plain sum of two tensors.", "Write a + b.")
        return None
    first, second = (export.settled(a) for a in node.args if isinstance(a, Node))
    if set(first.sources) & set(second.sources):  # NIR knows an edge or none, not two
        assert isinstance(node.args[1], Node)
        second = export.scale(node.args[1], torch.ones(()), second.sources, "_again")
    return Value((*first.sources, *second.sources))


def _movement(export: _Export, node: Node, module: Any) -> Value | None:
    source = node.all_input_nodes[0]
    before, after = export.shape(source), export.shape(node)
    value = export.values[source]
    if before == after:
        return value
    if len(node.all_input_nodes) != 1 or len(after) != 1 or not _in_order(node, module):
        return _refused(export, node, module)
    return Value(_flattened(export, node, before, value.sources).sources, value.divisor)


def _in_order(node: Node, module: Any) -> bool:
    """Return whether ``node``, whose result is a vector, flattens: transpositions and the like move elements."""
    names = ("flatten", "view", "reshape", "squeeze")
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return isinstance(module, nn.Flatten) or (module is None and target in names)


def _flattened(export: _Export, node: Node, shape: tuple[int, ...], sources: tuple[str, ...]) -> Value:
    start = 1 if export.reader.flattens_batch else 0
    return export.add(node, export.nir.Flatten({"input": np.array(shape)}, start, -1), sources, "_flat")


def _same(export: _Export, node: Node, module: Any) -> Value:
    return export.values[node.all_input_nodes[0]]


RULES: dict[Any, Rule] = {
    nn.Linear: _linear, nn.Conv1d: _convolution, nn.Conv2d: _convolution, nn.AvgPool2d: _pool,
    ADAPTIVE_AVERAGE_POOLS: _pool, SpikingSite: _site, ChannelScale: _scale, ExpandTime: _same, nn.Identity: _same,
}  # fmt: skip
OPERATORS: dict[Any, Rule] = {Sum: _sum, Movement: _movement, PerChannelMap: _pool}


def _dense(weight: Tensor, groups: int) -> Tensor:
    """Return the weight of an ungrouped convolution that does what ``weight`` [O, I / groups, ...] does in groups."""
    out, each = len(weight) // groups, weight.shape[1]
    dense = weight.new_zeros(len(weight), each * groups, *weight.shape[2:])
    for g in range(groups):
        dense[g * out : (g + 1) * out, g * each : (g + 1) * each] = weight[g * out : (g + 1) * out]
    return dense


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()
