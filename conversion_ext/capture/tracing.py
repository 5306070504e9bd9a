"""Capture: a private copy of the user's network, in evaluation mode, as a graph in the user's terms."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from conversion_ext.capture.definitions import SEEN_THROUGH
from conversion_ext.capture.private_copy import private_copy, remove_hooks, unwrapped
from conversion_ext.capture.recognition import recognize_quantized
from conversion_ext.capture.recorded_values import RESERVED, RefusedError
from conversion_ext.capture.recording import Recording
from conversion_ext.capture.reference import Reference, disagreement, few, random_states_kept, reference_run
from conversion_ext.capture.source import line_of_error
from conversion_ext.capture.symbolic import SymbolicTracer, trace_symbols
from conversion_ext.data.inputs import called_with, tensors_of
from conversion_ext.errors import Problem, UnsupportedError, require
from conversion_ext.graph import is_stock, key_of, module_of, note
from conversion_ext.graph.structure import map_leaves
from conversion_ext.operators.base import covers

__all__ = ["capture", "capture_and_compare"]

_TAKEN = frozenset(dir(GraphModule)) | frozenset(vars(GraphModule(nn.Module(), Graph())))  # and of its attributes


def capture(
    ann: nn.Module,
    example: tuple[Any, ...] | None = None,
    *,
    leaf: Iterable[str | type[nn.Module]] = (),
    skip: Iterable[str] = (),
    inputs: int = 1,
) -> GraphModule:
    """Return the graph of a deep copy of ``ann`` in evaluation mode; ``ann`` itself is never changed.

    With an ``example`` the network's Python runs on its shapes (see ``recording``), and the graph is compared with the
    network on the first samples. Without one, torch.fx follows symbols, and nothing that depends on shapes is known.

    Parametrized, normalized and pruned weights are baked in; forward hooks that change values are traced, others are
    left out. Of every node ``graph.info`` has the key, its path in the user's terms (``layer1.0.relu#1`` for the second
    call site, ``layer1.0.add`` for a function), and the user's source line (``net.py:12: x = F.relu(x)``).

    Args:
        ann: The network; a ``GraphModule``, a compiled, exported or data-parallel one works too.
        example: The arguments of one call, each a tensor [N, ...] or a nested structure of tensors. Every tensor in it
            becomes an input of the graph.
        leaf: Module types, or paths of modules, to keep as one node each, as torch.nn layers are.
        skip: Paths of modules to keep whole and out of the conversion.
        inputs: Without an example, how many arguments of ``forward`` are data; further ones keep their default.

    Raises:
        UnsupportedError: The network cannot be copied or traced, or its graph computes something else; the sentence
            names the module and a remedy.
        ValueError: ``leaf`` or ``skip`` names no module of the network.
    """
    return capture_and_compare(ann, example, leaf=leaf, skip=skip, inputs=inputs)[0]


def capture_and_compare(
    ann: nn.Module,
    example: tuple[Any, ...] | None = None,
    *,
    leaf: Iterable[str | type[nn.Module]] = (),
    skip: Iterable[str] = (),
    inputs: int = 1,
) -> tuple[GraphModule, Reference | None]:
    """Return what ``capture`` does, and what the user's network gives on the first samples of the example."""
    ann = unwrapped(ann)
    require(isinstance(ann, nn.Module), f"The network is a {type(ann).__name__}; give a torch.nn.Module.", TypeError)
    types, leaf_paths, skip_paths = _split(ann, leaf, skip)
    model = private_copy(ann, hooks=example is not None)
    kept = {model.get_submodule(path) for path in leaf_paths}
    skipped = {model.get_submodule(path) for path in skip_paths}

    def whole(module: nn.Module) -> bool:
        if module in kept or module in skipped or isinstance(module, types):
            return True
        seen_through = isinstance(module, SEEN_THROUGH) or getattr(module, "return_indices", False) is True
        return (is_stock(module) or covers(module)) and not seen_through

    if example is None:
        tracer = SymbolicTracer(whole, inputs)
        try:
            graph = trace_symbols(tracer, model)
        except Exception as error:
            raise _failure(tracer.failed, model, error) from error
        return _finished(model, graph, {}, skipped), None
    call, before = _Call(example), _kept_tensors(model)
    reference, failed = _reference(model, call)
    kept_for_next = sorted(_kept_tensors(model) - before)
    recognize_quantized(model, lambda module: module in kept or module in skipped or isinstance(module, types))
    recording = Recording(model, whole, _device(model, call.tensors))
    try:
        with random_states_kept():
            graph = recording.record(call.tensors, call.names(model), lambda tensors: call(model, tensors))
    except Exception as error:
        if kept_for_next and not isinstance(error, RefusedError):
            raise _cache(model, *kept_for_next[0][:2]) from error
        raise _failure(recording.failed, model, error, call.tensors) from error
    if failed is not None:
        raise _failure(None, model, failed, call.tensors) from failed
    assert reference is not None
    remove_hooks(model)
    captured = _finished(model, graph, recording.constants, skipped)
    problem = None if reference.random else disagreement(ann, captured, reference, call)
    if problem is not None:
        raise UnsupportedError(str(problem), (problem,))
    return captured, reference


class _Call:
    """One call of the network: its tensors, and how they lie in its arguments."""

    def __init__(self, example: tuple[Any, ...]) -> None:
        self._example = example
        self.tensors = tensors_of(example)

    def __call__(self, model: nn.Module, tensors: Sequence[Tensor]) -> Any:
        """Call ``model`` with other tensors in the places of the example's."""
        given = iter(tensors)
        arguments = map_leaves(lambda leaf: next(given) if tensors_of(leaf) else leaf, tuple(self._example))
        return called_with(model, arguments, self._example)

    def names(self, model: nn.Module) -> list[str]:
        """Return what the network calls each tensor: the argument's name, with a number inside of a structure."""
        arguments = [p for p in inspect.signature(model.forward).parameters.values()]
        names: list[str] = []
        keywords = getattr(self._example, "keywords", ())
        for index, value in enumerate(self._example):
            known = index < len(arguments) and arguments[index].kind is not inspect.Parameter.VAR_POSITIONAL
            name = arguments[index].name if known else f"x{index}"
            behind = index - len(self._example) + len(keywords)
            name = keywords[behind] if behind >= 0 else name
            name = f"{name}_input" if name in RESERVED else name
            count = len(tensors_of(value))
            names += [name] if isinstance(value, Tensor) else [f"{name}_{i}" for i in range(count)]
        return names


def _reference(model: nn.Module, call: _Call) -> tuple[Reference | None, Exception | None]:
    """Run the user's network on the first samples; an error is kept, since recording tells better where it lies."""
    try:
        return reference_run(model, few(call.tensors), call), None
    except Exception as error:  # of the user's own code
        remove_hooks(model)
        return None, error


def _kept_tensors(model: nn.Module) -> set[tuple[str, str, int]]:
    """Return (path of the module, attribute, identity) of tensors that are neither parameters nor buffers."""
    modules = model.named_modules()
    return {(path, name, id(v)) for path, m in modules for name, v in vars(m).items() if isinstance(v, Tensor)}


def _cache(model: nn.Module, path: str, name: str) -> UnsupportedError:
    """Return the error of a network that keeps a tensor of one call for the next."""
    problem = Problem(
        path or type(model).__name__,
        f"keeps a tensor of one call for the next in its attribute {name!r}, as a cache of keys and values does.",
        "Give the network without it, with the whole sequence in one call.",
    )
    return UnsupportedError(str(problem), (problem,))


def _finished(model: nn.Module, graph: Graph, constants: dict[str, Tensor], skipped: set[nn.Module]) -> GraphModule:
    """Return the module of a graph, every node with its key, layers called by position."""
    for name, value in constants.items():
        setattr(model, name, value.detach().clone())  # of its own memory, also where the user's is expanded
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            first, dot, rest = str(node.target).partition(".")
            if first in _TAKEN:
                setattr(model, f"{first}_", getattr(model, first))
                node.target = f"{first}_{dot}{rest}"
    captured = GraphModule(model, graph, type(model).__name__).eval()
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


def _device(model: nn.Module, tensors: Sequence[Tensor]) -> torch.device:
    parameter = next(model.parameters(), None)
    return tensors[0].device if parameter is None else parameter.device


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


def _failure(
    failed: tuple[BaseException, str] | None, model: nn.Module, error: Exception, tensors: Sequence[Tensor] = ()
) -> UnsupportedError:
    """Return the error that tells which module could not be traced, why, and what to do."""
    path = failed[1] if failed is not None and failed[0] is error else ""
    if isinstance(error, RefusedError):
        reason, remedy = error.args
    elif tensors:
        shapes = " and ".join(str(list(value.shape)) for value in tensors)
        reason, remedy = f"fails on an example of shape {shapes}: {_sentence(error)}", "Check the example."
        if isinstance(error, TypeError | LookupError):
            remedy = "Check the example, and convert(forward=...), which says how a batch is passed."
    else:
        symbols = type(error).__name__ == "TraceError" or "Proxy" in str(error) or "symbolic tracing" in str(error)
        why = "it uses shapes or values of its input in Python" if symbols else _sentence(error)
        reason = f"cannot be followed without an example: {why}."
        remedy = "Give one, whose shapes answer such questions: check(ann, example_input)."
    if path and (isinstance(error, RefusedError) or not tensors):
        kind = type(model.get_submodule(path)).__name__
        remedy = (
            f"{remedy} Or keep the module whole: skip=({path!r},) leaves it out of the conversion, leaf=({path!r},) "
            f"keeps it as one node for an operator registered for {kind}."
        )
    line = line_of_error(error.__traceback__)
    problem = Problem(path or type(model).__name__, reason, remedy, line)
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
