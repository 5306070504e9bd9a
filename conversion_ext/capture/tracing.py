"""Capture: a private copy of the user's network, in evaluation mode, as a graph in the user's terms."""

from __future__ import annotations

import copy
import inspect
import linecache
import operator
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Proxy, Tracer
from torch.nn.utils.prune import BasePruningMethod

from conversion_ext.capture.baking import bake
from conversion_ext.errors import Problem, UnsupportedError, require
from conversion_ext.graph import is_number, is_stock, key_of, module_of, note
from conversion_ext.operators.base import covers

__all__ = ["capture"]

_TORCH = str(Path(torch.__file__).parent)
_HOOKS = tuple(name for name in vars(nn.Module()) if "_hooks" in name)  # torch's own, not a user's attribute
_WEIGHT_HOOKS = {"WeightNorm", "SpectralNorm"}  # by name, since torch is about to drop both


def capture(
    ann: nn.Module, *, leaf: Iterable[str | type[nn.Module]] = (), skip: Iterable[str] = (), inputs: int = 1
) -> GraphModule:
    """Return the graph of a deep copy of ``ann`` in evaluation mode; ``ann`` itself is never changed.

    Hooks are not copied; parametrized, normalized and pruned weights are baked in. Of every node ``graph.info`` has
    the key, its path in the user's terms (``layer1.0.relu#1`` for the second call site, ``layer1.0.add`` for a
    function), and the user's source line (``net.py:12: x = F.relu(x)``).

    Args:
        ann: The network; a ``GraphModule`` works too.
        leaf: Module types, or paths of modules, to keep as one node each, as torch.nn layers are.
        skip: Paths of modules to keep whole and out of the conversion.
        inputs: How many arguments of ``forward`` the data fills. Further ones that have a default keep it.

    Raises:
        UnsupportedError: The network cannot be copied or traced; the sentence names the module and a remedy.
        ValueError: ``leaf`` or ``skip`` names no module of the network.
    """
    require(isinstance(ann, nn.Module), f"The network is a {type(ann).__name__}; give a torch.nn.Module.", TypeError)
    types, leaf_paths, skip_paths = _split(ann, leaf, skip)
    model = _private_copy(ann).eval()
    bake(model)
    kept = {model.get_submodule(path) for path in leaf_paths}
    skipped = {model.get_submodule(path) for path in skip_paths}
    tracer = _Tracer(types, kept | skipped, inputs)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise _trace_failure(tracer, model, error) from error
    captured = GraphModule(model, _plain(graph), type(ann).__name__).eval()
    _name_nodes(captured)
    for node in captured.graph.nodes:
        module = module_of(captured, node)
        if module is None:
            continue
        if module in skipped:
            note(node, skip=True)
        if node.kwargs:  # relu(input=x) reads as relu(x)
            given = inspect.signature(module.forward).bind(*node.args, **node.kwargs)
            node.args, node.kwargs = given.args, given.kwargs
    captured.recompile()
    return captured


def _plain(traced: Graph) -> Graph:
    """Return a copy that is not bound to our tracer, which pickle would build without its arguments."""
    copied = Graph()
    copied.output(copied.graph_copy(traced, {}))
    return copied


def _split(
    ann: nn.Module, leaf: Iterable[str | type[nn.Module]], skip: Iterable[str]
) -> tuple[tuple[type[nn.Module], ...], list[str], list[str]]:
    """Check ``leaf`` and ``skip`` and return (leaf types, leaf paths, skip paths)."""
    for name, given in (("leaf", leaf), ("skip", skip)):
        require(not isinstance(given, str | type), f"{name}={given!r}: give a tuple, {name}=({given!r},).")
    leaf, skip = list(leaf), list(skip)
    types = tuple(entry for entry in leaf if isinstance(entry, type) and issubclass(entry, nn.Module))
    leaf_paths = [entry for entry in leaf if isinstance(entry, str)]
    odd = [entry for entry in leaf if not isinstance(entry, str) and entry not in types]
    odd += [entry for entry in skip if not isinstance(entry, str)]
    require(not odd, f"leaf and skip hold {odd!r}: use paths of modules, and in leaf also subclasses of nn.Module.")
    known = {path for path, _ in ann.named_modules(remove_duplicate=False)} - {""}
    unknown = sorted({*leaf_paths, *skip} - known)
    require(not unknown, f"The network has no module {unknown}; leaf and skip take paths from named_modules().")
    return types, leaf_paths, skip


def _private_copy(ann: nn.Module) -> nn.Module:
    """Return a deep copy without hooks, the weights that hooks compute baked in."""
    memo: dict[int, Any] = {}
    for module in ann.modules():
        for name, value in vars(module).items():
            if name in _HOOKS:
                memo[id(value)] = OrderedDict()
            elif isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()  # deepcopy refuses results of a computation
    try:
        model = copy.deepcopy(ann, memo)
    except Exception as error:
        raise UnsupportedError(
            f"The network cannot be copied: {_sentence(error)} Make it work with copy.deepcopy, "
            "for example by taking open files, locks and loaders out of its attributes."
        ) from error
    for path, original in ann.named_modules():
        hooks: Any = original._forward_pre_hooks  # noqa: SLF001 (torch offers no other view of its hooks)
        for hook in hooks.values():
            if type(hook).__name__ in _WEIGHT_HOOKS or isinstance(hook, BasePruningMethod):
                hook.remove(model.get_submodule(path))
    return model


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


class _Tracer(Tracer):
    """torch.fx's tracer with our leaf policy, source lines, and a memory of where tracing failed."""

    def __init__(self, types: tuple[type[nn.Module], ...], whole: set[nn.Module], inputs: int) -> None:
        super().__init__(param_shapes_constant=True)
        self._types, self._whole, self._inputs = types, whole, inputs
        self.failure: tuple[Exception, str] | None = None
        self._path = [""]  # of the modules that are being traced

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self._whole or isinstance(m, self._types) or is_stock(m) or covers(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            self._path.append(self.path_of_module(m))
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            if self.failure is None or self.failure[0] is not error:  # the innermost module sees an error first
                self.failure = (error, self.path_of_module(m))
            raise
        finally:
            self._path.pop()

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for index, proxy in enumerate(args):
            if isinstance(proxy, Proxy) and proxy.node.args and index > self._inputs:
                args[index] = proxy.node.args[0]
                self.graph.erase_node(proxy.node)
        return function, args

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        node = super().create_node(*args, **kwargs)
        note(node, key=self._enclosed(node), line=next((line for line in _lines(inspect.currentframe())), ""))
        return node

    def _enclosed(self, node: Node) -> str:
        """Return what a node calls as a path in the user's terms."""
        if node.op not in ("call_function", "call_method"):
            return str(node.target)
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
        return f"{self._path[-1]}.{name}" if self._path[-1] else str(name)

    def proxy(self, node: Node) -> Proxy:
        return _MutableProxy(node, self)

    def to_bool(self, obj: Any) -> bool:
        """Let the user's assertions on shapes pass; any other branch on a traced value is an error of torch.fx."""
        line = next((line for line in _lines(inspect.currentframe())), "")
        return line.partition(": ")[2].startswith("assert ") or super().to_bool(obj)


def _lines(frame: FrameType | None) -> Iterator[str]:
    """Iterate over the source lines of the user's stack, innermost first, up to the call of ``capture``."""
    while frame is not None and frame.f_code.co_name != capture.__name__:
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH, "<")) and file != __file__:
            yield _line(file, frame.f_lineno)
        frame = frame.f_back


def _line(file: str, number: int | None) -> str:
    """Return ``net.py:12: x = F.relu(x)``; Python 3.10 knows no number for some instructions of its own."""
    if number is None:
        return Path(file).name
    return f"{Path(file).name}:{number}: {linecache.getline(file, number).strip()}"


def _trace_failure(tracer: _Tracer, model: nn.Module, error: Exception) -> UnsupportedError:
    """Return the error that tells which module could not be traced, why, and what to do."""
    path = tracer.failure[1] if tracer.failure is not None and tracer.failure[0] is error else ""
    line, step = "", error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if not file.startswith((_TORCH, "<")) and file != __file__:
            line = _line(file, step.tb_lineno)
        step = step.tb_next
    if path:
        remedy = (
            f"Keep the module whole: skip=({path!r},) leaves it out of the conversion, leaf=({path!r},) keeps it as "
            f"one node for an operator registered for {type(model.get_submodule(path)).__name__}."
        )
    else:
        remedy = "Move this part of forward into a module of its own and name that module in skip= or leaf=."
    problem = Problem(path or type(model).__name__, f"cannot be traced: {_sentence(error)}", remedy, line)
    return UnsupportedError(str(problem), (problem,))


def _sentence(error: Exception) -> str:
    """Return the first line of an error's message, with its type and a full stop."""
    first = str(error).strip().partition("\n")[0].rstrip(". ")
    return f"{type(error).__name__}: {first}." if first else f"{type(error).__name__}."


def _name_nodes(model: GraphModule) -> None:
    """Give every node its key; the calls of a module take the bare path before functions do."""
    calls: Counter[str] = Counter()
    nodes = list(model.graph.nodes)
    for node in [n for n in nodes if n.op == "call_module"] + [n for n in nodes if n.op != "call_module"]:
        base = key_of(node)
        note(node, key=base if not calls[base] else f"{base}#{calls[base]}")
        calls[base] += 1
