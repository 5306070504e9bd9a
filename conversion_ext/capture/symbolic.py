"""Trace a network without an example: torch.fx follows symbols, so no shape is known."""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import Graph, Node, Proxy, Tracer

from conversion_ext.capture.source import called, user_lines
from conversion_ext.graph import is_number, note

__all__ = ["SymbolicTracer", "trace_symbols"]

_LOCK = threading.RLock()  # torch.fx patches nn.Module itself while it traces


def trace_symbols(tracer: SymbolicTracer, model: nn.Module) -> Graph:
    """Return the graph of ``model``, one trace at a time in this process."""
    with _LOCK:
        graph = tracer.trace(model)
    copied = Graph()  # not bound to our tracer, which pickle would build without its arguments
    copied.output(copied.graph_copy(graph, {}))
    return copied


class _MutableProxy(Proxy):
    """A proxy that records ``x += y`` as what it is on tensors, in place; torch.fx takes it for ``x = x + y``."""


def _record_in_place(name: str) -> Callable[..., Any]:
    """Return the method of a proxy that records ``x += y``; numbers are not memory, for them it is ``x = x + y``."""

    def method(self: Proxy, other: Any) -> Proxy:
        function = getattr(operator, name if is_number(self.node) else f"i{name}")
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(_MutableProxy, f"__i{_name}__", _record_in_place(_name))


class SymbolicTracer(Tracer):
    """torch.fx's tracer with our leaf policy, source lines, and a memory of where tracing failed.

    ``whole`` tells which modules become one node; ``inputs`` arguments of ``forward`` are data, further ones keep their
    defaults.
    """

    def __init__(self, whole: Callable[[nn.Module], bool], inputs: int) -> None:
        super().__init__(param_shapes_constant=True)
        self._whole, self._inputs = whole, inputs
        self.failed: tuple[BaseException, str] | None = None
        self._thread = threading.get_ident()
        self._path = [""]  # of the modules that are being traced

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether ``m`` becomes one node."""
        return self._whole(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace a module; the innermost one sees an error first."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)  # torch.fx patches nn.Module for every thread of the process
        try:
            self._path.append(self.path_of_module(m))
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            if self.failed is None or self.failed[0] is not error:
                self.failed = (error, self.path_of_module(m))
            raise
        finally:
            self._path.pop()

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Let arguments beyond the inputs keep their defaults."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for index, proxy in enumerate(args):
            if isinstance(proxy, Proxy) and proxy.node.args and index > self._inputs:
                args[index] = proxy.node.args[0]
                self.graph.erase_node(proxy.node)
        return function, args

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        """Note the user's line."""
        node = super().create_node(*args, **kwargs)
        note(node, key=called(node, self._path[-1]), line=next(user_lines(inspect.currentframe()), ""))
        return node

    def proxy(self, node: Node) -> Proxy:
        """Return a proxy that knows of operations in place."""
        return _MutableProxy(node, self)

    def to_bool(self, obj: Any) -> bool:
        """Let the user's assertions on shapes pass; any other branch on a traced value is an error of torch.fx."""
        line = next(user_lines(inspect.currentframe()), "")
        return line.partition(": ")[2].startswith("assert ") or super().to_bool(obj)
