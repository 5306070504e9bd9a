"""What an operator of the ANN's graph means for scales and for time, and the registry of operators.

A *unit* is the scale in which a tensor is expressed: value = unit * signal. It is a tensor [1, C, 1, ...] with as
many dimensions as the value; a dimension of size 1 is one along which it does not change. ``nan`` in a requested
unit means "no request here".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.errors import Problem, require
from conversion_ext.neurons import Neuron
from conversion_ext.nn.stateful import Stateful
from conversion_ext.operators.bounds import Interval
from conversion_ext.operators.sites import SiteKind
from conversion_ext.registry import Registry
from conversion_ext.types import Family

__all__ = [
    "Activation", "Choices", "Constant", "Elementwise", "Lookup", "NodeContext", "Operator", "Rule", "argument",
    "compress", "context_of", "covers", "first", "numbers_alone", "ones", "operator_of", "operators",
    "register_operator",
]  # fmt: skip

Units = Tensor | None


class Choices(Protocol):
    """What a recipe chooses among several spiking forms of one operator."""

    @property
    def max_pool(self) -> str:
        """The method of spiking max-pools."""
        ...


@dataclass(frozen=True)
class Operator:
    """Meaning of one graph node. The base class is a node without scale or time: sizes, constants, numbers.

    A subclass answers every question that the stages of a conversion ask about the operator; what it does not answer
    is answered with care: the sign is unknown, there is no bound, the output is analog. ``stateful`` nodes see the
    time axis; the others are applied to [T*N, ...] as they are.
    """

    @property
    def stateful(self) -> bool:
        """Whether the node needs to know which rows belong to which time step."""
        return False

    def output_unit(self, context: NodeContext, units: Sequence[Units], requested: Units) -> Any:
        """Return the unit of the output, given those of the tensor inputs and the one that consumers request."""
        return None

    def free_unit(self, context: NodeContext, units: Sequence[Units]) -> Any:
        """Return the unit that the output has if nobody requests one, None where the node can take any."""
        return None if any(unit is None for unit in units) else self.output_unit(context, units, None)

    def input_units(self, context: NodeContext, units: Sequence[Units], output: Any) -> list[Units]:
        """Return the unit that each tensor input must have, None where any will do."""
        return [None] * len(units)

    def requested_units(self, context: NodeContext, requested: Any) -> list[Units]:
        """Return the unit to request of each tensor input, given the one requested of the output."""
        return [None] * len(context.inputs)

    def fold(self, context: NodeContext, units: Sequence[Units], output: Any) -> nn.Module | None:
        """Return the module that does the same on signals expressed in the given units; None: unchanged."""
        return None

    def never_negative(self, inputs: Sequence[bool]) -> bool:
        """Return whether no element of the output is negative, given which tensors that go in have none."""
        return False

    def bounds(self, context: NodeContext, inputs: Sequence[Any]) -> Any:
        """Return the :class:`Interval` of the output (one for each of several), given those of the tensor inputs.

        None where no bound is known.
        """
        return None

    def family_out(self, context: NodeContext, families: Sequence[Family]) -> Family:
        """Return what values the output takes at one step, given those of the inputs."""
        return Family.ANALOG

    def spiking_form(self, module: nn.Module | None, choices: Choices) -> Stateful | None:
        """Return the module that does the same on spike trains, for operators that need one; None: the node stays."""
        return None

    def not_integer(self, context: NodeContext) -> tuple[str, str] | None:
        """Return (reason, remedy) why integers that go in do not give integers; None where they do."""
        return None


@dataclass(frozen=True)
class Activation(Operator):
    """A place where a site is made: ``kind``: how it spikes; ``cap``: where a clipped ReLU ends.

    An activation that was trained for spikes gives its ``threshold`` and perhaps its ``neuron``; None: the recipe's.
    ``positive``: no output is negative; ``keeps_sign``: none is if no input is. ``bilinear``: it is linear in each of
    its two tensors.
    One that still stands in a converted graph is applied to a value that does not depend on time, in unit 1.
    """

    kind: SiteKind = SiteKind.RELU
    cap: float | None = None
    threshold: float | None = None
    neuron: Neuron | None = None
    positive: bool = False
    keeps_sign: bool = False
    bilinear: bool = False

    def output_unit(self, context: NodeContext, units: Sequence[Units], requested: Units) -> Tensor:
        return ones(context.out_shape)

    def input_units(self, context: NodeContext, units: Sequence[Units], output: Any) -> list[Units]:
        return [ones(shape) for shape in context.shapes]

    def requested_units(self, context: NodeContext, requested: Any) -> list[Units]:
        return [ones(shape) for shape in context.shapes]

    def never_negative(self, inputs: Sequence[bool]) -> bool:
        return self.kind is SiteKind.RELU or self.positive or (self.keeps_sign and all(inputs))


@dataclass(frozen=True)
class Elementwise(Operator):
    """Element by element of one input: its unit and its family stay."""

    def output_unit(self, context: NodeContext, units: Sequence[Units], requested: Units) -> Units:
        return units[0]

    def input_units(self, context: NodeContext, units: Sequence[Units], output: Any) -> list[Units]:
        return list(units)

    def requested_units(self, context: NodeContext, requested: Any) -> list[Units]:
        return [requested]

    def never_negative(self, inputs: Sequence[bool]) -> bool:
        return all(inputs)

    def bounds(self, context: NodeContext, inputs: Sequence[Interval]) -> Interval | None:
        return inputs[0]

    def family_out(self, context: NodeContext, families: Sequence[Family]) -> Family:
        return families[0]


@dataclass(frozen=True)
class Constant(Operator):
    """A tensor that is the same for every sample, in the size of the batch: a class token, coordinates. Unit 1."""

    def output_unit(self, context: NodeContext, units: Sequence[Units], requested: Units) -> Any:
        return graph.map_sizes(context.out_shape, ones)

    def input_units(self, context: NodeContext, units: Sequence[Units], output: Any) -> list[Units]:
        return [None] * len(units)

    def never_negative(self, inputs: Sequence[bool]) -> bool:
        return bool(inputs) and all(inputs)


@dataclass(frozen=True)
class Lookup(Operator):
    """A function of indices and masks alone, such as a row of a table: the current of a constant input, in unit 1.

    Nothing of it is a rate, so that conditions, counts and casts are exact at every step.
    """

    def output_unit(self, context: NodeContext, units: Sequence[Units], requested: Units) -> Any:
        return graph.map_sizes(context.out_shape, ones)

    def input_units(self, context: NodeContext, units: Sequence[Units], output: Any) -> list[Units]:
        return [ones(shape) for shape in context.shapes]


@dataclass
class NodeContext:
    """One node with what its operator needs to know of it: tensor inputs, their shapes and the output's (batch 1)."""

    model: GraphModule
    node: Node
    inputs: list[Node]
    shapes: list[torch.Size]
    out_shape: Any

    @property
    def module(self) -> Any:
        """The module called, or None."""
        return graph.module_of(self.model, self.node)

    def rerun(self, values: Sequence[Any]) -> Any:
        """Run the node on other tensors in the place of its data inputs, constants as they were."""
        given = dict(zip(self.inputs, values, strict=True))
        return graph.call(self.model, self.node, lambda n: given[n] if n in given else graph.constant(self.model, n))


def context_of(body: GraphModule, node: Node) -> NodeContext:
    """Gather what an operator needs of one node of a graph whose shapes are known (see ``graph.shapes.propagate``)."""
    inputs = [source for source in node.all_input_nodes if graph.info(source).is_data]
    return NodeContext(body, node, inputs, [graph.info(s).shape for s in inputs], graph.info(node).shape)


Rule = Callable[[Node, nn.Module | None], Operator | Problem]


def _name(target: Any) -> str:
    """Return what a user calls ``target``: nn.ReLU, F.pad, torch.cat, Tensor.view."""
    if isinstance(target, str):
        return f"Tensor.{target}"
    module = getattr(target, "__module__", "") or "torch"  # torch's built-in functions name no module
    homes = {"torch.nn.modules": "nn", "torch.nn.functional": "F", "torch._C._nn": "F", "_operator": "operator"}
    home = next((short for long, short in homes.items() if module.startswith(long)), module.split(".")[0])
    return f"{home}.{target.__name__}"


operators: Registry[Rule] = Registry(
    "operator", callable, "a function (node, module) -> Operator or Problem", show=_name
)
"""Rules by what a node calls: a module class (and its subclasses), a function, or the name of a tensor method."""


def register_operator(*targets: Any) -> Callable[[Rule], Rule]:
    """Say what calls of ``targets`` mean: decorate a rule ``(node, module or None) -> Operator or Problem``.

    A target is an ``nn.Module`` class, a function such as ``torch.add``, or the name of a tensor method. Modules of a
    registered class are kept whole when a network is traced.

    >>> class Swish(nn.Module):
    ...     def forward(self, x):
    ...         return x * torch.sigmoid(x)
    >>> @register_operator(Swish)
    ... def swish(node, module):
    ...     return Activation(SiteKind.GRADED)
    """
    wrong = [target for target in targets if not (isinstance(target, str) or callable(target))]
    require(
        bool(targets) and not wrong,
        f"register_operator({', '.join(map(repr, wrong))}): give classes of modules, functions or names of methods.",
        TypeError,
    )
    return lambda rule: operators.register(targets, rule)


def covers(module: nn.Module) -> bool:
    """Return whether an operator is registered for the class of ``module``."""
    return _rule_of_module(module) is not None


def _rule_of_module(module: nn.Module) -> Rule | None:
    """Return the rule for the class of ``module`` or the nearest base; not torch's for a class that overrides it."""
    for kind in type(module).__mro__:
        rule = operators.find(kind)
        if rule is not None and (graph.is_stock(module) or not kind.__module__.startswith("torch.")):
            return rule
    return None


def operator_of(model: GraphModule, node: Node) -> Operator | Problem:
    """Return the meaning of ``node``, or the problem it poses."""
    if node.op in ("placeholder", "get_attr", "output"):
        return Operator()
    module = graph.module_of(model, node)
    if graph.info(node).skip:
        return Activation(SiteKind.GRADED)
    data = [source for source in node.all_input_nodes if graph.info(source).is_data]
    discrete = graph.info(node).is_data and data and all(graph.info(source).discrete for source in data)
    if discrete and (module is None or graph.is_stock(module)):
        return Lookup()
    rule = operators.find(node.target) if module is None else _rule_of_module(module)
    if rule is None:
        called = type(module).__name__ if module is not None else _name(node.target)
        return Problem(
            graph.key_of(node),
            f"no operator is registered for {called}.",
            "Register one with conversion_ext.register_operator, or keep it analog with skip=.",
            graph.describe(node),
        )
    return _fitting(node, rule(node, module))


def _fitting(node: Node, operator: Operator | Problem) -> Operator | Problem:
    """Return the operator, or what becomes of it where it gets other values than it is for."""
    known = graph.info(node)
    if not known.is_data or isinstance(operator, Problem):
        return operator
    if not any(graph.may_hold_data(source) for source in node.all_input_nodes):
        return Constant()
    if type(operator) is Operator:
        return Problem(
            graph.key_of(node),
            f"{_name(node.target)} is for sizes and numbers, and here it works on values of the network.",
            "Write it with other functions, or keep the module around it whole with skip=.",
            graph.describe(node),
        )
    return operator


def compress(unit: Tensor) -> Tensor:
    """Shrink every dimension along which ``unit`` does not change to size 1; the batch dimension always is 1."""
    for dim in range(unit.dim()):
        first = unit.narrow(dim, 0, 1)
        same = (unit == first) | (unit.isnan() & first.isnan())
        if bool(same.all()):
            unit = first
    return unit


def first(unit: Tensor, dims: Sequence[int]) -> Tensor:
    """Return ``unit`` with size 1 along ``dims``: the first entry that is a number, since a request may name a part."""
    dims = [dim % unit.dim() for dim in dims]
    if not dims or all(unit.shape[dim] == 1 for dim in dims):
        return unit
    moved = unit.movedim(dims, list(range(-len(dims), 0)))
    flat = moved.flatten(-len(dims))
    index = (~flat.isnan()).to(torch.uint8).argmax(dim=-1, keepdim=True)
    one = flat.gather(-1, index)
    return one.reshape(*moved.shape[: -len(dims)], *[1] * len(dims)).movedim(list(range(-len(dims), 0)), dims)


def numbers_alone(node: Node, reason: str, remedy: str) -> Operator | Problem:
    """Return the operator of a function of sizes and other numbers, and what refuses it where it may get data."""
    if not any(graph.may_hold_data(source) for source in node.all_input_nodes):
        return Operator()
    return Problem(graph.key_of(node), reason, remedy, graph.describe(node))


def argument(node: Node, place: int, names: Sequence[str], default: Any) -> Any:
    """Return an argument of a call given by place or by one of its names."""
    given = next((node.kwargs[name] for name in names if name in node.kwargs), default)
    return node.args[place] if len(node.args) > place else given


def ones(shape: Sequence[int]) -> Tensor:
    """Return the unit 1 of a value of this shape."""
    return torch.ones([1] * len(shape), dtype=torch.float64)
