"""Record what a network computes while it runs on shapes: every torch function that it calls becomes a node.

The network's own Python runs on tensors of the meta device, which have shapes and hold no values. So ``isinstance``,
branches and loops on shapes, containers and casts follow the example, and what would need values is refused. Two batch
sizes run side by side: a number that differs between them is computed from the batch size and becomes a node; every
other number is a constant.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MethodDescriptorType, WrapperDescriptorType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from conversion_ext.capture.aten import plain_call
from conversion_ext.capture.batch_number import BatchNumber
from conversion_ext.capture.source import called, user_lines
from conversion_ext.graph import describe, meta_device, note
from conversion_ext.graph.structure import leaves_of, map_leaves
from conversion_ext.graph.values import tensors_in
from conversion_ext.operators.assignment import with_item

__all__ = ["RESERVED", "Recording", "RefusedError", "bound"]

RESERVED = frozenset({"steps", "self"})  # names of arguments of the converted network

_OPERATORS = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "matmul": operator.matmul,
    "pow": operator.pow, "remainder": operator.mod, "__getitem__": operator.getitem, "gt": operator.gt,
    "lt": operator.lt, "ge": operator.ge, "le": operator.le, "__eq__": operator.eq, "__ne__": operator.ne,
    "__floordiv__": operator.floordiv, "__and__": operator.and_, "__or__": operator.or_,
}  # fmt: skip
_SWAPPED = {
    "__rsub__": operator.sub, "__rdiv__": operator.truediv, "__rtruediv__": operator.truediv, "__rpow__": operator.pow,
    "__rfloordiv__": operator.floordiv, "__rmatmul__": operator.matmul, "__rmod__": operator.mod,
}  # fmt: skip
_VALUES = {
    "item", "__bool__", "__float__", "__int__", "__index__", "__complex__", "tolist", "numpy", "__array__", "equal",
    "allclose", "is_nonzero", "__contains__",
}  # fmt: skip
_IGNORED = {"_assert", "_assert_async", "retain_grad", "register_hook", "record_stream"}
_CONSTRUCTORS = {
    "zeros": 0.0, "ones": 1.0, "zeros_like": 0.0, "ones_like": 1.0, "new_zeros": 0.0, "new_ones": 1.0,
}  # fmt: skip
_PLAIN = (
    bool, int, float, complex, str, type(None), type(Ellipsis), torch.dtype, torch.device, torch.layout,
    torch.memory_format,
)  # fmt: skip


class RefusedError(Exception):
    """Raised through the user's code where a network cannot be recorded: RefusedError(reason, remedy)."""


@dataclass
class _Known:
    """A tensor of the run: how to make its node, its twin at the other batch size, and whether it is a constant."""

    tensor: Tensor  # keeps its id from being used again
    other: Any
    make: Callable[[], Node]
    constant: bool

    def node(self) -> Node:
        made = self.make()
        self.make = lambda: made
        return made


class Recording(TorchFunctionMode):
    """The graph of one run of ``model``, a private copy that may be patched meanwhile.

    ``whole`` tells which modules become one node; ``device`` is where the network lives. ``constants`` holds the
    tensors that are neither parameters nor buffers, by the names that nodes know them by; ``failed`` the last error
    and the innermost module that it came through.
    """

    def __init__(self, model: nn.Module, whole: Callable[[nn.Module], bool], device: torch.device) -> None:
        super().__init__()
        self.model, self.whole, self.device = model, whole, device
        self.graph = Graph()
        self.constants: dict[str, Tensor] = {}
        self.failed: tuple[BaseException, str] | None = None
        self._within: list[str] = []
        self._known: dict[int, _Known] = {}
        self._paused = 0
        named = [*model.named_parameters(), *model.named_buffers()]
        self._attributes = {id(value): name for name, value in named}
        self._nodes: dict[str, Node] = {}
        self._special: dict[str, Callable[[Any, Any, Any], Any]] = {
            "size": self._size, "to": self._to, "type_as": self._type_as, "cpu": self._move, "cuda": self._move,
            "__len__": self._len, "__iter__": self._iterate, "__setitem__": self._assign, "__reversed__": self._reverse,
            "new_tensor": self._new_tensor, "full": self._full, "full_like": self._full, "new_full": self._full,
            **dict.fromkeys(_CONSTRUCTORS, self._constructor),
        }  # fmt: skip

    def record(self, inputs: Sequence[Tensor], names: Sequence[str], call: Callable[[list[Tensor]], Any]) -> Graph:
        """Return the graph of ``call(tensors)``, whose placeholders are called ``names``; call it once."""
        batch = next((len(value) for value in inputs if value.dim()), None)
        tensors: list[Tensor] = []
        for value, name in zip(inputs, names, strict=True):
            own = meta_device.shell(value.detach()).clone()
            batched = own.dim() > 0 and len(own) == batch
            other = own.new_empty((len(own) + 1, *own.shape[1:])) if batched else own
            node = self.graph.placeholder(name)
            self._know(own, other, lambda node=node: node)
            tensors.append(own)
        with self._patched(), self, torch.no_grad():
            self.graph.output(self._arguments(call(tensors)))
        return self.graph

    @contextmanager
    def _patched(self) -> Iterator[None]:
        """Let the modules of the copy tell when they are called; nothing is changed on their classes."""
        paths: dict[nn.Module, str] = {}
        for path, module in self.model.named_modules(remove_duplicate=False):
            paths.setdefault(module, path)
        own = {module: vars(module).get("forward") for module in paths}
        try:
            for module, path in paths.items():
                step = self._leaf if path and self.whole(module) else self._enter
                module.forward = bound(step, module, path, module.forward)
            yield
        finally:
            for module, forward in own.items():
                del module.forward
                if forward is not None:
                    module.forward = forward

    def _enter(self, module: nn.Module, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module that is seen through."""
        self._within.append(path)
        try:
            return forward(*args, **kwargs)
        except Exception as error:
            self._blame(error, path)
            raise
        finally:
            self._within.pop()

    def _leaf(self, module: nn.Module, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Make a call of a module one node."""
        if self._paused or not self._depends((args, kwargs)):
            return forward(*args, **kwargs)

        def run(*args: Any, **kwargs: Any) -> Any:
            return meta_device.call_module(module, forward, args, kwargs, self.device)

        try:
            return self._note("call_module", path, args, kwargs, run)
        except Exception as error:
            self._blame(error, path)
            raise

    def _blame(self, error: Exception, path: str) -> None:
        if self.failed is None or self.failed[0] is not error:  # the innermost module sees an error first
            self.failed = error, path

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take note of one call of a torch function."""
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        with self._pause():
            return self._call(func, args, kwargs)

    @contextmanager
    def _pause(self) -> Iterator[None]:
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = getattr(func, "__name__", "")
        if not self._depends((args, kwargs)):
            return self._of_constants(func, args, kwargs)
        if name == "__get__":
            return self._attribute(func.__self__.__name__, args[0])
        if name == "__set__":
            raise RefusedError(f"sets {func.__self__.__name__} of a tensor.", "Compute a new tensor instead.")
        if name in _VALUES:
            return self._value(name)
        if name in _IGNORED:
            return None
        if name == "requires_grad_":
            return args[0]
        if name in self._special:
            return self._special[name](func, args, kwargs)
        return self._function(func, args, kwargs)

    def _of_constants(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Compute what does not depend on the data; functions of parameters become nodes, so that they can train."""
        value = func(*self._at(args, other=False), **self._at(kwargs, other=False))
        given = [v for v in leaves_of((args, kwargs)) if isinstance(v, Tensor)]
        trained = any(
            (isinstance(v, nn.Parameter) and id(v) in self._attributes) or id(v) in self._known for v in given
        )
        if trained and tensors_in(value):
            node = self._create(*_node_of(func, args, kwargs))
            self._know(value, value, lambda: node, constant=True)
        return value

    def _function(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Make a node of a call."""
        op, target, args, kwargs = _node_of(func, args, kwargs)
        function = _method(target) if op == "call_method" else target

        def run(*args: Any, **kwargs: Any) -> Any:
            return meta_device.call(function, args, kwargs, self.device)

        return self._note(op, target, args, kwargs, run)

    def _note(self, op: str, target: Any, args: Any, kwargs: Any, run: Callable[..., Any]) -> Any:
        """Run a call at both batch sizes and make a node of it, unless it returns what it got or no tensor."""
        with self._pause():
            given = tensors_in((args, kwargs))
            versions = [value._version for value in given]  # noqa: SLF001 (how torch tells that a tensor was changed)
            first = run(*self._at(args, other=False), **self._at(kwargs, other=False))
            changed = [v for v, version in zip(given, versions, strict=True) if v._version != version]  # noqa: SLF001
            try:
                other = run(*self._at(args, other=True), **self._at(kwargs, other=True))
            except Exception as error:
                raise self._hard_coded(error) from error
        if any(id(value) not in self._known for value in changed):
            raise RefusedError("writes data into a tensor that the network keeps.", "Return the result instead.")
        if op != "call_module" and not changed and any(first is value for value in given):
            return first
        if not tensors_in(first):
            return self._numbers(first, other, lambda: self._create(op, target, args, kwargs))
        node = self._create(op, target, args, kwargs)
        self._know(first, other, lambda: node)
        return first

    def _create(self, op: str, target: Any, args: Any, kwargs: Any) -> Node:
        name = f"{target}_" if target in RESERVED else None
        node = self.graph.create_node(op, target, tuple(self._arguments(args)), self._arguments(kwargs), name)
        within = self._within[-1] if self._within else ""
        note(node, key=called(node, within), line=next(user_lines(inspect.currentframe()), ""))
        return node

    def compute(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> Node:
        """Return the node of a number computed from the batch size."""
        return self._create("call_function", function, operands, {})

    def undecided(self) -> Exception:
        """Return the error of a network whose course depends on the batch size."""
        return RefusedError(
            "takes another course, or another number, for another batch size.", "Let the batch size decide nothing."
        )

    # ---- what is known of results

    def _know(self, value: Any, other: Any, make: Callable[[], Node], constant: bool = False) -> None:
        """Remember what the tensors of a result are."""
        if isinstance(value, Tensor):
            self._known[id(value)] = _Known(value, other, make, constant)
        elif isinstance(value, tuple | list):
            for index, (part, twin) in enumerate(zip(value, other, strict=True)):
                self._know(part, twin, self._element(make, index), constant)
        elif isinstance(value, dict):
            for key, part in value.items():
                self._know(part, other[key], self._element(make, key), constant)

    def _element(self, make: Callable[[], Node], index: Any) -> Callable[[], Node]:
        """Return what makes the node of one part of a result, behind the node of the whole."""

        def made() -> Node:
            whole = make()
            last = whole
            while last.next.target is operator.getitem and last.next.args[0] is whole:
                last = last.next
            with self.graph.inserting_after(last):
                node = self.graph.call_function(operator.getitem, (whole, index))
            within = self._within[-1] if self._within else ""
            note(node, key=called(node, within), line=describe(whole))
            return node

        return made

    def _numbers(self, first: Any, other: Any, make: Callable[[], Node]) -> Any:
        """Return a result without tensors; numbers that change with the batch size remember where they come from."""
        if isinstance(first, torch.Size):
            pairs = enumerate(zip(first, other, strict=True))
            return torch.Size([a if a == b else BatchNumber(a, b, self, self._element(make, d)) for d, (a, b) in pairs])
        if first == other:
            return first
        if isinstance(first, int) and not isinstance(first, bool):
            return BatchNumber(first, other, self, make)
        if isinstance(first, bool | float):
            raise self.undecided()
        return first

    # ---- what needs more than a node

    def _attribute(self, name: str, tensor: Tensor) -> Any:
        if name == "shape":
            return self._size(None, (tensor,), {})
        if name == "device":
            return self.device
        if name in ("is_cpu", "is_cuda", "is_mps", "is_xpu", "is_meta"):
            return name == f"is_{self.device.type}"
        if name == "data":
            return self._function(Tensor.detach, (tensor,), {})
        return self._note("call_function", getattr, (tensor, name), {}, getattr)

    def _value(self, name: str) -> bool:
        line = next(user_lines(inspect.currentframe()), "")
        if name == "__bool__" and line.partition(": ")[2].startswith("assert "):
            return True
        raise RefusedError(
            "uses values of the data in Python (control flow or a number), and they differ from sample to sample.",
            "Express it with tensor operations.",
        )

    def _size(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensor, dim = (*args, kwargs.get("dim"))[:2]
        other = self._known[id(tensor)].other if id(tensor) in self._known else tensor
        pairs = enumerate(zip(tensor.shape, other.shape, strict=True))
        sizes = torch.Size([self._length(tensor, d, a, b) for d, (a, b) in pairs])
        return sizes if dim is None else sizes[dim]

    def _length(self, tensor: Tensor, dim: int, first: int, other: int) -> int:
        if first == other:
            return first
        return BatchNumber(first, other, self, lambda: self._create("call_method", "size", (tensor, dim), {}))

    def _len(self, func: Any, args: Any, kwargs: Any) -> Any:
        return args[0].shape[0]

    def _iterate(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensor = args[0]
        if isinstance(self._size(None, (tensor, 0), {}), BatchNumber):
            raise RefusedError(
                "is iterated over the samples of a batch, whose number varies.", "Work on the whole batch."
            )
        return iter(self._function(Tensor.unbind, (tensor, 0), {}))

    def _reverse(self, func: Any, args: Any, kwargs: Any) -> Any:
        return self._function(Tensor.flip, (args[0], 0), {})

    def _to(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Change the dtype; a move to where the network lives is none."""
        tensor, *rest = args
        given = [*rest, *(kwargs[key] for key in ("dtype", "device", "other") if key in kwargs)]
        given = [value.dtype if isinstance(value, Tensor) else value for value in given]
        place = next((value for value in given if isinstance(value, torch.device | str)), None)
        dtype = next((value for value in given if isinstance(value, torch.dtype)), None)
        if place is not None and torch.device(place).type != self.device.type:
            raise RefusedError(f"moves data to {place}.", f"Let the whole network live on {self.device}.")
        if not self._depends(tensor):
            return tensor if dtype is None else tensor.to(dtype)
        return tensor if dtype is None else self._function(Tensor.to, (tensor, dtype), {})

    def _type_as(self, func: Any, args: Any, kwargs: Any) -> Any:
        return self._to(func, (args[0], args[1].dtype), {})

    def _move(self, func: Any, args: Any, kwargs: Any) -> Any:
        return self._to(func, (args[0], func.__name__), {})

    def _new_tensor(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        return torch.as_tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype), device=self.device).clone()

    def _constructor(self, func: Any, args: Any, kwargs: Any) -> Any:
        return self._filled(func, args, kwargs, _CONSTRUCTORS[func.__name__])

    def _full(self, func: Any, args: Any, kwargs: Any) -> Any:
        fill = kwargs.get("fill_value", args[-1])
        if not isinstance(fill, int | float):
            return self._function(func, args, kwargs)
        return self._filled(func, args, kwargs, fill)

    def _filled(self, func: Any, args: Any, kwargs: Any, fill: float) -> Tensor:
        """Return a tensor of one value: a constant, expanded to the batch where its shape holds the batch size."""
        kwargs = {key: value for key, value in kwargs.items() if key != "device"}
        hollow = {**kwargs, "device": "meta"}
        first = func(*self._at(args, other=False), **self._at(hollow, other=False))
        other = func(*self._at(args, other=True), **self._at(hollow, other=True))
        if first.shape == other.shape:
            return torch.full(first.shape, fill, dtype=first.dtype, device=self.device)
        if func.__name__.endswith("_like"):
            sizes = self._size(None, args[:1], {})
        else:
            numbers = [v for v in leaves_of((args, kwargs)) if isinstance(v, int) and not isinstance(v, bool)]
            sizes = numbers[: first.dim()]
        one = torch.full([1] * first.dim(), fill, dtype=first.dtype, device=self.device)
        return self._note("call_method", "expand", (one, *sizes), {}, self._shell_of("expand"))

    def _shell_of(self, method: str) -> Callable[..., Any]:
        return lambda *args: meta_device.call(_method(method), args, {}, self.device)

    def _assign(self, func: Any, args: Any, kwargs: Any) -> None:
        """Make ``x[index] = value`` a function; other views of x do not see it, and are refused when they are used."""
        tensor, index, value = args
        known = self._known.get(id(tensor))
        if known is None or known.constant:
            raise RefusedError("writes data into a tensor that the network keeps.", "Build it with torch.cat.")
        copy, other = tensor, known.other
        for owner, twin in ((copy, False), (other, True)):
            position, given = self._at((index, value), twin)
            with_item(owner, position, meta_device.shell(given) if isinstance(given, Tensor) else given)
        node = self._create("call_function", with_item, (tensor, index, value), {})
        memory = tensor.untyped_storage()._cdata  # noqa: SLF001 (the only name of memory without an address)
        for each in self._known.values():
            if each.tensor is not tensor and each.tensor.untyped_storage()._cdata == memory:  # noqa: SLF001
                each.make = self._stale
        known.make = lambda: node

    def _stale(self) -> Node:
        raise RefusedError(
            "uses a view of a tensor after a part of the tensor was assigned.", "Build the tensor with torch.cat."
        )

    # ---- arguments

    def _depends(self, tree: Any) -> bool:
        """Return whether anything in the arguments comes from the data."""
        found = False
        for leaf in leaves_of(tree):
            if isinstance(leaf, BatchNumber):
                found = found or leaf.owner is self
            elif isinstance(leaf, Tensor):
                known = self._known.get(id(leaf))
                if known is None and leaf.is_meta:
                    raise RefusedError(
                        "uses a value from where it cannot be followed (compiled code, another library).",
                        "Express it with functions of torch.",
                    )
                found = found or (known is not None and not known.constant)
            elif isinstance(leaf, slice):
                found = found or self._depends([leaf.start, leaf.stop, leaf.step])
        return found

    def _at(self, tree: Any, other: bool) -> Any:
        """Return arguments as they are at one of the two batch sizes."""

        def value(leaf: Any) -> Any:
            if isinstance(leaf, BatchNumber):
                return leaf.other if other and leaf.owner is self else int(leaf)
            if other and isinstance(leaf, Tensor) and id(leaf) in self._known:
                return self._known[id(leaf)].other
            return leaf

        return map_leaves(value, tree)

    def _arguments(self, tree: Any) -> Any:
        """Return arguments as a node holds them."""

        def value(leaf: Any) -> Any:
            if isinstance(leaf, BatchNumber):
                return leaf.node() if leaf.owner is self else int(leaf)
            if isinstance(leaf, Tensor):
                known = self._known.get(id(leaf))
                return known.node() if known is not None else self._constant(leaf)
            if isinstance(leaf, _PLAIN):
                return leaf
            if hasattr(leaf, "item") and getattr(leaf, "shape", None) == ():  # a number of numpy
                return leaf.item()
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

    def _hard_coded(self, error: Exception) -> Exception:
        why = str(error).strip().partition("\n")[0].rstrip(".")
        return RefusedError(
            f"works for the batch size of the example alone: {why}.",
            "Take the batch size from the tensor itself: x.view(x.size(0), ...).",
        )


def bound(step: Callable[..., Any], module: nn.Module, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward that hands its call to ``step(module, path, forward, args, kwargs)``."""
    return lambda *args, **kwargs: step(module, path, forward, args, kwargs)


def _node_of(func: Any, args: Any, kwargs: Any) -> tuple[str, Any, Any, Any]:
    """Return (op, target, args, kwargs) of the node that stands for a call of a torch function."""
    func, args, kwargs = plain_call(func, args, kwargs)
    name = getattr(func, "__name__", "")
    if name in _SWAPPED and len(args) == 2:
        return "call_function", _SWAPPED[name], args[::-1], kwargs
    descriptor = isinstance(func, MethodDescriptorType | WrapperDescriptorType)
    method = descriptor or is_tensor_method_or_property(func) or getattr(Tensor, name, None) is func
    if not method:
        return "call_function", func, args, kwargs
    if name in _OPERATORS and len(args) == 2 and not kwargs:
        return "call_function", _OPERATORS[name], args, kwargs
    return "call_method", name, args, kwargs


def _method(name: str) -> Callable[..., Any]:
    return lambda tensor, *args, **kwargs: getattr(tensor, name)(*args, **kwargs)
