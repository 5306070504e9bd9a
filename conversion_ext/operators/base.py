"""What an operator of the ANN's graph means for scales and for time, and the registry of those meanings.

A *unit* is the scale in which a tensor is expressed: value = unit * signal. It is a tensor [1, C, 1, ...] with as
many dimensions as the value; a dimension of size 1 is one along which it does not change. ``nan`` in a demanded
unit means "no demand here".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.errors import Problem
from conversion_ext.graph.shapes import Shapes
from conversion_ext.neurons import Neuron
from conversion_ext.operators.sites import SiteKind
from conversion_ext.types import Family

__all__ = [
    "Activation", "Call", "Elementwise", "Operator", "Rule", "call_of", "compress", "ones", "operator_of", "operators",
    "register_operator",
]  # fmt: skip

Units = Tensor | None


@dataclass(frozen=True)
class Operator:
    """Meaning of one graph node. The base class is a node without scale or time: sizes, constants, numbers.

    ``stateful`` nodes see the time axis; the others are applied to [T*N, ...] as they are.
    """

    @property
    def stateful(self) -> bool:
        """Whether the node needs to know which rows belong to which time step."""
        return False

    def unit_out(self, call: Call, units: Sequence[Units], demanded: Units) -> Any:
        """Return the unit of the output, given those of the tensor inputs and the one the consumers demand."""
        return None

    def natural(self, call: Call, units: Sequence[Units]) -> Any:
        """Return the unit the output has if nobody demands one, None where the node can take any."""
        return None if any(unit is None for unit in units) else self.unit_out(call, units, None)

    def required(self, call: Call, units: Sequence[Units], out: Any) -> list[Units]:
        """Return the unit that each tensor input must have, None where any will do."""
        return [None] * len(units)

    def demand(self, call: Call, demanded: Any) -> list[Units]:
        """Return the unit to ask of each tensor input, given the one demanded of the output."""
        return [None] * len(call.inputs)

    def fold(self, call: Call, units: Sequence[Units], out: Any) -> nn.Module | None:
        """Return the module that does the same on signals expressed in the given units; None: unchanged."""
        return None

    def keeps_sign(self, node: Node) -> bool:
        """Return whether inputs that are not negative give an output that is not negative."""
        return False

    def family_out(self, call: Call, families: Sequence[Family]) -> Family:
        """Return what values the output takes at one step, given those of the inputs."""
        return Family.ANALOG


@dataclass(frozen=True)
class Activation(Operator):
    """A place where a site is made: ``kind`` says how it spikes, ``cap`` where a clipped ReLU ends.

    An activation that was trained for spikes gives its ``threshold`` and perhaps its ``neuron``; None: the recipe's.
    One that still stands in a converted graph is applied to a value that does not depend on time, in unit 1.
    """

    kind: SiteKind = SiteKind.RELU
    cap: float | None = None
    threshold: float | None = None
    neuron: Neuron | None = None

    def unit_out(self, call: Call, units: Sequence[Units], demanded: Units) -> Tensor:
        return ones(call.out_shape)

    def required(self, call: Call, units: Sequence[Units], out: Any) -> list[Units]:
        return [ones(shape) for shape in call.shapes]

    def demand(self, call: Call, demanded: Any) -> list[Units]:
        return [ones(shape) for shape in call.shapes]


@dataclass(frozen=True)
class Elementwise(Operator):
    """Element by element of one input: its unit and its family stay."""

    def unit_out(self, call: Call, units: Sequence[Units], demanded: Units) -> Units:
        return units[0]

    def required(self, call: Call, units: Sequence[Units], out: Any) -> list[Units]:
        return list(units)

    def demand(self, call: Call, demanded: Any) -> list[Units]:
        return [demanded]

    def family_out(self, call: Call, families: Sequence[Family]) -> Family:
        return families[0]


@dataclass
class Call:
    """One node with what the unit rules need to know of it: tensor inputs, their shapes and the output's (batch 1)."""

    model: GraphModule
    node: Node
    inputs: list[Node]
    shapes: list[torch.Size]
    out_shape: Any
    replay: Callable[[Sequence[Tensor]], Any]

    @property
    def module(self) -> Any:
        """The module called, or None."""
        return graph.module_of(self.model, self.node)


def call_of(body: GraphModule, node: Node, shapes: Shapes) -> Call:
    """Gather what the rules need of one node."""
    inputs = [source for source in node.all_input_nodes if source in shapes.shapes]

    def replay(values: Sequence[Any]) -> Any:
        """Run the node on other tensors in the place of its data inputs, constants as they were."""
        given = dict(zip(inputs, values, strict=True))
        return graph.call(body, node, lambda n: given[n] if n in given else shapes.constants[n])

    return Call(body, node, inputs, [shapes.shapes[s] for s in inputs], shapes.shapes[node], replay)


Rule = Callable[[Node, nn.Module | None], Operator | Problem]


class _Operators:
    """Rules by what a node calls: a module class (and its subclasses), a function, or the name of a tensor method."""

    def __init__(self) -> None:
        self._rules: dict[Any, Rule] = {}

    def register(self, targets: Sequence[Any], rule: Rule) -> None:
        for target in targets:
            if target in self._rules:
                raise ValueError(f"An operator for {_name(target)} is registered already; remove one of the two.")
            self._rules[target] = rule

    def rule(self, node: Node, module: nn.Module | None) -> Rule | None:
        if module is not None:
            return next((self._rules[c] for c in type(module).__mro__ if c in self._rules), None)
        return self._rules.get(node.target)

    def names(self) -> list[str]:
        """Return the names of all targets."""
        return [_name(target) for target in self._rules]

    def targets(self) -> dict[str, Any]:
        """Return {name: target}."""
        return {_name(target): target for target in self._rules}

    def items(self) -> list[tuple[str, Rule]]:
        """Return (name, rule) of all targets."""
        return [(_name(target), rule) for target, rule in self._rules.items()]


operators = _Operators()


def register_operator(*targets: Any) -> Callable[[Rule], Rule]:
    """Say what calls of ``targets`` mean: decorate a rule ``(node, module or None) -> Operator or Problem``.

    A target is an ``nn.Module`` class, a function such as ``torch.add``, or the name of a tensor method.

    >>> class Swish(nn.Module):
    ...     def forward(self, x):
    ...         return x * torch.sigmoid(x)
    >>> @register_operator(Swish)
    ... def swish(node, module):
    ...     return Activation(SiteKind.GRADED)
    """

    def decorate(rule: Rule) -> Rule:
        operators.register(targets, rule)
        return rule

    return decorate


def operator_of(model: GraphModule, node: Node) -> Operator | Problem:
    """Return the meaning of ``node``, or the problem it poses."""
    if node.op in ("placeholder", "get_attr", "output"):
        return Operator()
    module = graph.module_of(model, node)
    if graph.info(node).skip:
        return Activation(SiteKind.GRADED)
    rule = operators.rule(node, module)
    if rule is None:
        called = type(module).__name__ if module is not None else _name(node.target)
        return Problem(
            graph.key_of(node),
            f"no operator is registered for {called}.",
            "Register one with conversion_ext.register_operator, or keep it analog with skip=.",
            graph.describe(node),
        )
    return rule(node, module)


def compress(unit: Tensor) -> Tensor:
    """Shrink every dimension along which ``unit`` does not change to size 1; the batch dimension always is 1."""
    for dim in range(unit.dim()):
        first = unit.narrow(dim, 0, 1)
        same = (unit == first) | (unit.isnan() & first.isnan())
        if bool(same.all()):
            unit = first
    return unit


def ones(shape: Sequence[int]) -> Tensor:
    """Return the unit 1 of a value of this shape."""
    return torch.ones([1] * len(shape), dtype=torch.float64)


def _name(target: Any) -> str:
    """Return what a user calls ``target``: nn.ReLU, F.pad, torch.cat, Tensor.view."""
    if isinstance(target, str):
        return f"Tensor.{target}"
    module = getattr(target, "__module__", "") or "torch"  # torch's built-in functions name no module
    homes = {"torch.nn.modules": "nn", "torch.nn.functional": "F", "torch._C._nn": "F", "_operator": "operator"}
    home = next((short for long, short in homes.items() if module.startswith(long)), module.split(".")[0])
    return f"{home}.{target.__name__}"
