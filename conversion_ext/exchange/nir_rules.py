"""What each node of a converted network is in NIR, one rule for every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from conversion_ext import graph
from conversion_ext.exchange.nir_canvas import Canvas, Value, numbers
from conversion_ext.exchange.readers import Reader
from conversion_ext.graph.layers import ADAPTIVE_AVERAGE_POOLS, WEIGHTS
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.time import ExpandTime
from conversion_ext.neurons import IF, LIF, PLIF, Neuron
from conversion_ext.nn.channel_scale import ChannelScale
from conversion_ext.operators.arithmetic import Sum
from conversion_ext.operators.base import operator_of
from conversion_ext.operators.linear_map import LinearMap
from conversion_ext.operators.movement import Movement

__all__ = ["written"]

DT = 1e-4  # seconds of a step, as the readers take it
NEARLY_IF = 1e9  # time constant in steps whose leak float32 rounds to none

Rule = Callable[[Canvas, Node, Any], Value | None]


def written(canvas: Canvas, node: Node) -> Value | None:
    """Write ``node`` and return its value; note a problem and return None where NIR has no form of it."""
    module = graph.module_of(canvas.body, node)
    rule = next((rule for kind, rule in RULES.items() if isinstance(module, kind)), None)
    if rule is None:
        operator = operator_of(canvas.body, node)
        rule = next((rule for kind, rule in OPERATORS.items() if type(operator) is kind), _refused)
    return rule(canvas, node, module)


def _refused(canvas: Canvas, node: Node, module: Any) -> None:
    target = node.target
    kind = type(module).__name__ if module is not None else getattr(target, "__name__", target)
    canvas.problem(
        node,
        f"NIR has no node for {kind}.",
        "It has weight layers, sums, average pools and flattening: use max_pool=... only where average pooling will "
        "not do, ReLU in the place of other activations, and no concatenation.",
    )


def _linear(canvas: Canvas, node: Node, layer: nn.Linear) -> Value | None:
    source = node.all_input_nodes[0]
    if len(canvas.shape(source)) != 1:
        canvas.problem(node, "NIR's Affine takes vectors.", "Flatten before it.")
        return None
    value = canvas.values[source]
    weight = layer.weight / value.divisor
    bias: Any = getattr(layer, "bias", None)  # torch's types deny that it may be None
    bias = torch.zeros(layer.out_features) if bias is None else bias
    return canvas.add(node, canvas.nir.Affine(numbers(weight), numbers(bias)), value.sources)


def _convolution(canvas: Canvas, node: Node, layer: Any) -> Value | None:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        canvas.problem(node, f"NIR pads with zeros by numbers, not {layer.padding!r} ({layer.padding_mode}).",
                       "Give padding as numbers, of zeros.")  # fmt: skip
        return None
    source = node.all_input_nodes[0]
    value = canvas.values[source]
    written = canvas.convolution(
        canvas.shape(source)[1:], layer.weight / value.divisor, layer.bias, layer.stride, layer.padding,
        layer.dilation, layer.groups,
    )  # fmt: skip
    return canvas.add(node, written, value.sources)


def _pool(canvas: Canvas, node: Node, module: Any) -> Value | None:
    """Average pools with windows of one size, means over all positions among them."""
    source = node.all_input_nodes[0]
    size = canvas.shape(source)[1:]
    window = _window(module, size, canvas.shape(node)[1:])
    if len(size) != 2 or window is None:
        canvas.problem(node, "NIR averages over windows of one size in two dimensions.",
                       "Use nn.AvgPool2d with a kernel that divides the size.")  # fmt: skip
        return None
    kernel, stride, padding = (np.array(v) for v in window)
    if not canvas.reader.averages and padding.any():
        canvas.problem(node, "this reader's pools have no padding.", "Use nn.AvgPool2d without padding.")
        return None
    value = canvas.values[source]
    kind = canvas.nir.AvgPool2d if canvas.reader.averages else canvas.nir.SumPool2d
    divisor = value.divisor * (1 if canvas.reader.averages else int(kernel.prod()))
    pooled = canvas.add(node, kind(kernel, stride, padding), value.sources)
    if len(canvas.shape(node)) == 1:
        pooled = _flattened(canvas, node, (canvas.shape(source)[0], 1, 1), pooled.sources)
    return Value(pooled.sources, divisor)


def _mean(canvas: Canvas, node: Node, module: Any) -> Value | None:
    """Write a mean by function or method; other linear maps (sums, padding, upsampling) have no node."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    means = module is None and (name == "mean" or "avg_pool2d" in name)
    return _pool(canvas, node, None) if means else _refused(canvas, node, module)


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


def _site(canvas: Canvas, node: Node, site: SpikingSite) -> Value | None:
    spec, shape = site.spec.holding(site.neuron), canvas.shape(node)
    if not isinstance(spec, IF | LIF | PLIF) or type(spec) not in (IF, LIF, PLIF) or not site.stepping.plain:
        what = site.spec if site.stepping.plain else type(site.stepping).__name__
        canvas.problem(node, f"NIR has no neuron like {what!r}.", "Use a recipe of IF or LIF neurons, stepped plainly.")
        return None
    if site.clock is not None or (site.copies > 1 and not canvas.reader.metadata):
        what = "looks ahead" if site.clock is not None else "is of copies that start from potentials of their own"
        canvas.problem(node, f"it {what}, which this graph cannot represent.", "Use a recipe without, such as default.")
        return None
    source = node.args[0]
    assert isinstance(source, Node)
    value = canvas.settled(source)
    start = site.v_init.detach().float().expand(1, *shape)[0]
    current = site.bias.detach().float() / site.threshold.float() if site.bias.dim() else torch.zeros(())
    if not canvas.reader.metadata and canvas.T is not None:
        current = current + _per_channel(start) / canvas.T
    if bool(current.any()) and not _biased(canvas, node, current):
        return None
    copies: list[str] = []
    for i in range(site.copies):
        written = _neuron(canvas, spec, shape)
        if canvas.reader.metadata:
            own = (start + ((i + 0.5) / site.copies - 0.5)).contiguous()
            written.metadata = {"reset": str(spec.reset.value), "v_init": numbers(own), **_comparison(spec)}
        copies += canvas.add(node, written, value.sources).sources
        if i:
            written.metadata["key"] += f", copy {i + 1}"
    return Value(tuple(copies))


def _neuron(canvas: Canvas, spec: IF | LIF | PLIF, shape: tuple[int, ...]) -> Any:
    reader, nir = canvas.reader, canvas.nir
    full = lambda value: np.full(shape, value, dtype=np.float32)  # noqa: E731
    threshold = full(_threshold(spec, reader))
    beta = torch.as_tensor(spec.beta).item() if isinstance(spec, PLIF) else 1.0
    if isinstance(spec, IF) or (isinstance(spec, PLIF) and beta == 1):
        if not reader.leaky:
            return nir.IF(full(reader.r), threshold, full(0))
        return nir.LIF(full(NEARLY_IF * DT), full(reader.r), full(0), threshold, full(0))
    dt = 1.0 if reader.metadata else DT
    tau = spec.tau if isinstance(spec, LIF) else 1 / (1 - beta)
    decays = isinstance(spec, LIF) and spec.decay_input
    return nir.LIF(full(tau * dt), full(1 if decays else tau), full(0), threshold, full(0))


def _threshold(spec: Neuron, reader: Reader) -> np.float32:
    """Return 1, or an ulp less or more where the reader compares otherwise than ``spec``."""
    strict = isinstance(spec, IF) and spec.strict
    if reader.metadata or strict == reader.strict:
        return np.float32(1)
    return np.nextafter(np.float32(1), np.float32(2 if strict else 0))


def _comparison(spec: Neuron) -> dict[str, Any]:
    """Return how ``spec`` compares, and where its potentials stop, for ``from_nir``."""
    if not isinstance(spec, IF):
        return {"spike": ">="}
    return {"spike": ">" if spec.strict else ">=", **({} if spec.floor is None else {"floor": float(spec.floor)})}


def _per_channel(value: Tensor) -> Tensor:
    """Return one number per channel where ``value`` [C, ...] has no more, else ``value``."""
    flat = value.reshape(len(value), -1)
    return flat[:, 0] if bool((flat == flat[:, :1]).all()) else value


def _biased(canvas: Canvas, node: Node, current: Tensor) -> bool:
    """Add ``current`` [] or [C] to the bias of a weight layer in front that no other node reads."""
    layer = next(_layers_of(canvas, node.args[0]), None) if current.dim() <= 1 else None
    if layer is None:
        canvas.problem(
            node,
            "its initial potential, or a bias of its own, belongs into the bias of a weight layer in front, and "
            "there is none that this site alone reads.",
            "Leave out T=, or use a recipe with v_init=0 and without tuners of sites.",
        )
        return False
    layer.bias = (layer.bias + numbers(current)).astype(np.float32)
    return True


def _layers_of(canvas: Canvas, node: Any) -> Iterator[Any]:
    """Iterate over the weight layers whose sum ``node`` is, as far as one node alone reads them."""
    if len(node.users) > 1:
        return
    if type(operator_of(canvas.body, node)) is Sum:
        for operand in node.args:
            yield from _layers_of(canvas, operand)
    elif isinstance(graph.module_of(canvas.body, node), WEIGHTS):
        yield canvas.nodes[canvas.values[node].sources[0]]


def _scale(canvas: Canvas, node: Node, module: ChannelScale) -> Value:
    source = node.all_input_nodes[0]
    value = canvas.values[source]
    return canvas.scale(node, module.scale / value.divisor, value.sources)


def _sum(canvas: Canvas, node: Node, module: Any) -> Value | None:
    if node.kwargs.get("alpha", 1) != 1 or len(node.args) < 2 or not all(isinstance(a, Node) for a in node.args):
        canvas.problem(node, "it is not a plain sum of two tensors.", "Write a + b.")
        return None
    first, second = (canvas.settled(a) for a in node.args if isinstance(a, Node))
    if set(first.sources) & set(second.sources):  # NIR knows an edge or none, not two
        assert isinstance(node.args[1], Node)
        second = canvas.scale(node.args[1], torch.ones(()), second.sources, "_again")
    return Value((*first.sources, *second.sources))


def _movement(canvas: Canvas, node: Node, module: Any) -> Value | None:
    source = node.all_input_nodes[0]
    before, after = canvas.shape(source), canvas.shape(node)
    value = canvas.values[source]
    if before == after:
        return value
    if len(node.all_input_nodes) != 1 or len(after) != 1 or not _in_order(node, module):
        return _refused(canvas, node, module)
    return Value(_flattened(canvas, node, before, value.sources).sources, value.divisor)


def _in_order(node: Node, module: Any) -> bool:
    """Return whether ``node``, whose result is a vector, flattens: transpositions and the like move elements."""
    names = ("flatten", "view", "reshape", "squeeze")
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return isinstance(module, nn.Flatten) or (module is None and target in names)


def _flattened(canvas: Canvas, node: Node, shape: tuple[int, ...], sources: tuple[str, ...]) -> Value:
    start = 1 if canvas.reader.flattens_batch else 0
    return canvas.add(node, canvas.nir.Flatten({"input": np.array(shape)}, start, -1), sources, "_flat")


def _same(canvas: Canvas, node: Node, module: Any) -> Value:
    return canvas.values[node.all_input_nodes[0]]


RULES: dict[Any, Rule] = {
    nn.Linear: _linear, nn.Conv1d: _convolution, nn.Conv2d: _convolution, nn.AvgPool2d: _pool,
    ADAPTIVE_AVERAGE_POOLS: _pool, SpikingSite: _site, ChannelScale: _scale, ExpandTime: _same, nn.Identity: _same,
}  # fmt: skip
OPERATORS: dict[Any, Rule] = {Sum: _sum, Movement: _movement, LinearMap: _mean}
