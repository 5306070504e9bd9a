"""The values of a recording: which come from the data, from which node, and what they are at another batch size."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from conversion_ext import graph
from conversion_ext.capture.batch_number import BatchNumber
from conversion_ext.capture.source import called, user_lines
from conversion_ext.graph.structure import leaves_of, map_leaves

__all__ = ["RESERVED", "Known", "RecordedValues", "Recording", "RefusedError"]

RESERVED = frozenset({"steps", "self"})  # names of arguments of the converted network

_PLAIN = (
    bool, int, float, complex, str, type(None), type(Ellipsis), torch.dtype, torch.device, torch.layout,
    torch.memory_format,
)  # fmt: skip


class RefusedError(Exception):
    """Raised through the user's code where a network cannot be recorded: RefusedError(reason, remedy)."""


@dataclass
class Known:
    """A tensor of the run: how to make its node, its twin at the other batch size, and whether it is a constant."""

    tensor: Tensor  # keeps its id from being used again
    other: Any
    make: Callable[[], Node]
    constant: bool

    def node(self) -> Node:
        """Return its node, made when it is asked for first."""
        made = self.make()
        self.make = lambda: made
        return made


class Recording(Protocol):
    """What a special call needs of the recording that it belongs to."""

    device: torch.device
    known: dict[int, Known]
    fills: dict[int, float]
    compared: dict[int, tuple[Any, ...]]

    def create(self, op: str, target: Any, args: Any, kwargs: Any) -> Node:
        """Make a node."""
        ...

    def compute(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> Node:
        """Make the node of a number."""
        ...

    def undecided(self) -> Exception:
        """Return the error of a network whose course depends on the batch size."""
        ...

    def know(self, value: Any, other: Any, make: Callable[[], Node], constant: bool = False) -> None:
        """Remember what the tensors of a result are."""
        ...

    def function(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Make a node of a call and return its value."""
        ...

    def note(self, op: str, target: Any, args: Any, kwargs: Any, run: Callable[..., Any]) -> Any:
        """Run a call at both batch sizes and make a node of it."""
        ...

    def defined(self, definition: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record what a function is made of."""
        ...

    def depends(self, tree: Any) -> bool:
        """Return whether anything in the arguments comes from the data."""
        ...

    def at(self, tree: Any, other: bool) -> Any:
        """Return arguments as they are at one of the two batch sizes."""
        ...


class RecordedValues:
    """The values of one run of ``model``, and the nodes of ``graph`` that compute them.

    ``constants`` holds the tensors that are neither parameters nor buffers, by the names that nodes know them by;
    ``path`` is the path of the modules that are running now.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.graph = Graph()
        self.constants: dict[str, Tensor] = {}
        self.known: dict[int, Known] = {}
        self.path: list[str] = []
        self.named = dict([*model.named_parameters(), *model.named_buffers()])
        self._attributes = {id(value): name for name, value in self.named.items()}
        self._nodes: dict[str, Node] = {}

    @property
    def within(self) -> str:
        """The path of the innermost module that is running."""
        return self.path[-1] if self.path else ""

    def is_parameter(self, value: Any) -> bool:
        """Return whether ``value`` is a parameter of the network."""
        return isinstance(value, nn.Parameter) and id(value) in self._attributes

    def know(self, value: Any, other: Any, make: Callable[[], Node], constant: bool = False) -> None:
        """Remember what the tensors of a result are."""
        if isinstance(value, Tensor):
            self.known[id(value)] = Known(value, other, make, constant)
        elif isinstance(value, tuple | list):
            if len(value) != len(other):
                raise RefusedError(
                    "takes a batch apart into its samples, whose number varies.", "Work on the whole batch."
                )
            for index, (part, twin) in enumerate(zip(value, other, strict=True)):
                self.know(part, twin, self.element(make, index), constant)
        elif isinstance(value, dict):
            for key, part in value.items():
                self.know(part, other[key], self.element(make, key), constant)

    def element(self, make: Callable[[], Node], index: Any) -> Callable[[], Node]:
        """Return what makes the node of one part of a result, behind the node of the whole."""

        def made() -> Node:
            whole = make()
            last = whole
            while last.next.target is operator.getitem and last.next.args[0] is whole:
                last = last.next
            with self.graph.inserting_after(last):
                node = self.graph.call_function(operator.getitem, (whole, index))
            graph.note(node, key=called(node, self.within), line=graph.describe(whole))
            return node

        return made

    def create(self, op: str, target: Any, args: Any, kwargs: Any) -> Node:
        """Make a node, with its key and the user's line."""
        name = f"{target}_" if target in RESERVED else None
        node = self.graph.create_node(op, target, tuple(self.arguments(args)), self.arguments(kwargs), name)
        graph.note(node, key=called(node, self.within), line=next(user_lines(inspect.currentframe()), ""))
        return node

    def compute(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> Node:
        """Return the node of a number computed from the batch size."""
        return self.create("call_function", function, operands, {})

    def undecided(self) -> Exception:
        """Return the error of a network whose course depends on the batch size."""
        return RefusedError(
            "takes another course, or another number, for another batch size.", "Let the batch size decide nothing."
        )

    def depends(self, tree: Any) -> bool:
        """Return whether anything in the arguments comes from the data."""
        dependent = False
        for leaf in leaves_of(tree):
            if isinstance(leaf, BatchNumber):
                dependent = dependent or leaf.owner is self
            elif isinstance(leaf, Tensor):
                known = self.known.get(id(leaf))
                if known is None and leaf.is_meta:
                    raise RefusedError(
                        "uses a value from where it cannot be followed (compiled code, another library).",
                        "Express it with functions of torch.",
                    )
                dependent = dependent or (known is not None and not known.constant)
            elif isinstance(leaf, slice):
                dependent = dependent or self.depends([leaf.start, leaf.stop, leaf.step])
        return dependent

    def at(self, tree: Any, other: bool) -> Any:
        """Return arguments as they are at one of the two batch sizes."""

        def value(leaf: Any) -> Any:
            if isinstance(leaf, BatchNumber):
                return leaf.other if other and leaf.owner is self else int(leaf)
            if other and isinstance(leaf, Tensor) and id(leaf) in self.known:
                return self.known[id(leaf)].other
            return leaf

        return map_leaves(value, tree)

    def arguments(self, tree: Any) -> Any:
        """Return arguments as a node holds them."""

        def value(leaf: Any) -> Any:
            if isinstance(leaf, BatchNumber):
                return leaf.node() if leaf.owner is self else int(leaf)
            if isinstance(leaf, Tensor):
                known = self.known.get(id(leaf))
                return known.node() if known is not None else self._constant(leaf)
            if hasattr(leaf, "item") and getattr(leaf, "shape", None) == ():  # a number of numpy
                return leaf.item()
            if isinstance(leaf, _PLAIN):
                return leaf
            raise RefusedError(
                f"passes on or returns a {type(leaf).__name__}.", "Use tensors, numbers, tuples, lists and dicts."
            )

        return map_leaves(value, tree)

    def _constant(self, tensor: Tensor) -> Node:
        """Return the node of a parameter, a buffer or a tensor that was computed without the data."""
        name = self._attributes.get(id(tensor))
        if name is None:
            name = f"_constant{len(self.constants)}"
            self.constants[name] = tensor
            self._attributes[id(tensor)] = name
        if name not in self._nodes:
            first = next((node for node in self.graph.nodes if node.op not in ("placeholder", "get_attr")), None)
            with self.graph.inserting_before(first) if first is not None else nullcontext():
                self._nodes[name] = self.graph.create_node("get_attr", name)
        return self._nodes[name]
