"""Record what a network computes while it runs on shapes: every torch function that it calls becomes a node.

The network's own Python runs on tensors of the meta device, which have shapes and hold no values. So ``isinstance``,
branches and loops on shapes, containers and casts follow the example, and what would need values is refused. Two batch
sizes run side by side: a number that differs between them is computed from the batch size and becomes a node; every
other number is a constant.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode

from conversion_ext.capture.batch_number import BatchNumber, lengths_as_sizes
from conversion_ext.capture.calls import method_called, node_of
from conversion_ext.capture.definitions import DEFINITIONS
from conversion_ext.capture.module_calls import Step, patched
from conversion_ext.capture.recorded_values import RecordedValues, RefusedError
from conversion_ext.capture.source import user_lines
from conversion_ext.capture.special_calls import SPECIAL
from conversion_ext.graph import meta_device
from conversion_ext.graph.structure import leaves_of
from conversion_ext.graph.values import tensors_in, version_of

__all__ = ["Recording"]


_VALUES = {
    "item", "__bool__", "__float__", "__int__", "__index__", "__complex__", "tolist", "numpy", "__array__", "equal",
    "allclose", "is_nonzero", "__contains__",
}  # fmt: skip
_IGNORED = {"_assert", "_assert_async", "retain_grad", "register_hook", "record_stream"}


class Recording(RecordedValues, TorchFunctionMode):
    """The graph of one run of ``model``, a private copy that may be patched meanwhile.

    ``whole`` tells which modules become one node; ``device`` is where the network lives; ``failed`` is the last error
    and the innermost module that it came through.
    """

    def __init__(self, model: nn.Module, whole: Callable[[nn.Module], bool], device: torch.device) -> None:
        super().__init__(model)
        self.model, self.whole, self.device = model, whole, device
        self.failed: tuple[BaseException, str] | None = None
        self._paused = 0
        self._memory = {value.untyped_storage()._cdata for value in self.named.values()}  # noqa: SLF001
        self.kept: list[Tensor] = []  # so that no other tensor gets the id of one that is forgotten
        self.fills: dict[int, float] = {}  # the one value of tensors that have no other
        self.compared: dict[int, tuple[Any, ...]] = {}  # what conditions compare: (name, left, right)

    def record(self, inputs: Sequence[Tensor], names: Sequence[str], call: Callable[[list[Tensor]], Any]) -> Graph:
        """Return the graph of ``call(tensors)``, whose placeholders are called ``names``; call it once."""
        batch = next((len(value) for value in inputs if value.dim()), None)
        tensors: list[Tensor] = []
        for value, name in zip(inputs, names, strict=True):
            own = meta_device.shell(value.detach()).clone()
            batched = own.dim() > 0 and len(own) == batch
            other = own.new_empty((len(own) + 1, *own.shape[1:])) if batched else own
            node = self.graph.placeholder(name)
            self.know(own, other, lambda node=node: node)
            tensors.append(own)
        with patched(self.model, self._step), lengths_as_sizes(), self, torch.no_grad():
            self.graph.output(self._output(call(tensors)))
        return self.graph

    def _step(self, module: nn.Module, path: str) -> Step:
        return self._leaf if path and self.whole(module) else self._enter

    def _enter(self, module: nn.Module, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module that is seen through."""
        self.path.append(path)
        try:
            return forward(*args, **kwargs)
        except Exception as error:
            self._blame(error, path)
            raise
        finally:
            self.path.pop()

    def _leaf(self, module: nn.Module, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Make a call of a module one node."""
        if self._paused or not self.depends((args, kwargs)):
            return forward(*args, **kwargs)

        def run(*args: Any, **kwargs: Any) -> Any:
            return meta_device.call_module(module, forward, args, kwargs, self.device)

        try:
            return self.note("call_module", path, args, kwargs, run)
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
        if not self.depends((args, kwargs)):
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
        if name in SPECIAL:
            return SPECIAL[name](self, func, args, kwargs)
        if name in DEFINITIONS:
            return self.defined(DEFINITIONS[name], args, kwargs)
        return self.function(func, args, kwargs)

    def _of_constants(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Compute what does not depend on the data; functions of parameters become nodes, so that they can train.

        What is then written into, such as a copied bias of which a part is set to 0, is a constant as it is in the end.
        """
        if getattr(func, "__name__", "") == "__get__":
            value = func(*args, **kwargs)
            if not isinstance(value, Tensor) or func.__self__.__name__ in ("data", "grad"):
                return value
            func, args = getattr, (args[0], func.__self__.__name__)
        given = [v for v in leaves_of((args, kwargs)) if isinstance(v, Tensor)]
        versions = [version_of(v) for v in given]
        value = func(*self.at(args, other=False), **self.at(kwargs, other=False))
        changed = [v for v, version in zip(given, versions, strict=True) if version_of(v) != version]
        if changed and self._forgotten(changed):
            return value
        trained = any(self.is_parameter(v) or id(v) in self.known for v in given)
        if trained and tensors_in(value):
            node = self.create(*node_of(func, args, kwargs))
            self.know(value, value, lambda: node, constant=True)
        return value

    def _forgotten(self, written: Sequence[Tensor]) -> bool:
        """Forget how constants that share memory with these were computed, unless it is that of a parameter."""
        memory = {v.untyped_storage()._cdata for v in written}  # noqa: SLF001
        if memory.intersection(self._memory):
            return False
        for key, known in list(self.known.items()):
            if known.constant and known.tensor.untyped_storage()._cdata in memory:  # noqa: SLF001
                self.kept.append(self.known.pop(key).tensor)
        return True

    def defined(self, definition: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record what a function is made of."""
        paused, self._paused = self._paused, 0
        try:
            with self:
                return definition(*args, **kwargs)
        finally:
            self._paused = paused

    def function(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Make a node of a call."""
        op, target, args, kwargs = node_of(func, args, kwargs)
        function = method_called(target) if op == "call_method" else target

        def run(*args: Any, **kwargs: Any) -> Any:
            return meta_device.call(function, args, kwargs, self.device)

        return self.note(op, target, args, kwargs, run)

    def note(self, op: str, target: Any, args: Any, kwargs: Any, run: Callable[..., Any]) -> Any:
        """Run a call at both batch sizes and make a node of it, unless it returns what it got or no tensor."""
        with self._pause():
            given = tensors_in((args, kwargs))
            versions = [version_of(value) for value in given]
            first = run(*self.at(args, other=False), **self.at(kwargs, other=False))
            changed = [v for v, version in zip(given, versions, strict=True) if version_of(v) != version]
            try:
                other = run(*self.at(args, other=True), **self.at(kwargs, other=True))
            except Exception as error:
                raise self._hard_coded(error, op == "call_module") from error
        if any(id(value) not in self.known for value in changed):
            raise RefusedError("writes data into a tensor that the network keeps.", "Return the result instead.")
        if op != "call_module" and not changed and any(first is value for value in given):
            return first
        if not tensors_in(first):
            return self._numbers(first, other, lambda: self.create(op, target, args, kwargs))
        node = self.create(op, target, args, kwargs)
        self.know(first, other, lambda: node)
        return first

    # ---- results without tensors, and what needs more than a node

    def _numbers(self, first: Any, other: Any, make: Callable[[], Node]) -> Any:
        """Return a result without tensors; numbers that change with the batch size remember where they come from."""
        if isinstance(first, torch.Size):
            pairs = enumerate(zip(first, other, strict=True))
            return torch.Size([a if a == b else BatchNumber(a, b, self, self.element(make, d)) for d, (a, b) in pairs])
        if first == other:
            return first
        if isinstance(first, int) and not isinstance(first, bool):
            return BatchNumber(first, other, self, make)
        if isinstance(first, bool | float):
            raise self.undecided()
        return first

    def _attribute(self, name: str, tensor: Tensor) -> Any:
        if name == "shape":
            return SPECIAL["size"](self, None, (tensor,), {})
        if name == "device":
            return self.device
        if name in ("is_cpu", "is_cuda", "is_mps", "is_xpu", "is_meta"):
            return name == f"is_{self.device.type}"
        if name == "data":
            return self.function(Tensor.detach, (tensor,), {})
        return self.note("call_function", getattr, (tensor, name), {}, getattr)

    def _value(self, name: str) -> bool:
        line = next(user_lines(inspect.currentframe()), "")
        if name == "__bool__" and line.partition(": ")[2].startswith("assert "):
            return True
        raise RefusedError(
            "uses values of the data in Python (control flow or a number), and they differ from sample to sample.",
            "Express it with tensor operations, or move it into a module of its own and keep that whole with skip=.",
        )

    def _output(self, result: Any) -> Any:
        """Return the result as the output node holds it: tensors of the data, in whatever containers."""
        for leaf in leaves_of(result):
            if isinstance(leaf, BatchNumber) or (isinstance(leaf, Tensor) and not self.depends(leaf)):
                raise RefusedError(
                    "returns a number or a tensor that is not computed from the input.",
                    "Return what is computed from the input alone.",
                )
        returned = self.arguments(result)  # which refuses what it does not know
        if not self.depends(result):
            raise RefusedError("returns nothing that is computed from the input.", "Return a tensor.")
        return returned

    def _hard_coded(self, error: Exception, of_layer: bool) -> Exception:
        why = str(error).strip().partition("\n")[0].rstrip(".")
        if of_layer:
            reason = f"takes dimension 0 of its input for something else than the batch: {why}."
            return RefusedError(reason, "Give inputs [N, ...], x[None] for one sample, and keep dimension 0 the batch.")
        return RefusedError(
            f"works for the batch size of the example alone: {why}.",
            "Take the batch size from the tensor itself: x.view(x.size(0), ...).",
        )
