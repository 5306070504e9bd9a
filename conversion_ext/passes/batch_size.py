"""The batch: read its size where it is used, and find what mixes its samples."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node, map_arg

from conversion_ext.errors import Problem
from conversion_ext.graph import describe, key_of, refresh

__all__ = ["BatchSize", "batch_problems", "is_batch_size", "mark_batch_sizes"]

_ELEMENTWISE = {operator.add, operator.sub, operator.mul, torch.add, torch.mul, torch.cat, F.pad, F.interpolate}


class BatchSize:
    """``y.view(x.size(0), ...)`` reads its batch size from y itself.

    In a converted network time is folded into the batch of y but perhaps not of x. Needs to know that both
    batches are one: from ``mark_batch_sizes``, else only where layers lead from x to y.
    """

    def run(self, model: GraphModule) -> None:
        """Rewrite the arguments of every call that works on a tensor with the batch in dimension 0."""
        for node, tensor, size in self._foreign(model):
            with model.graph.inserting_before(node):
                own = model.graph.call_method("size", (tensor, 0))
            own.meta.update(key=f"{key_of(node)}.size", line=describe(node), batch=True)
            node.args = (node.args[0], *_swap(node.args[1:], size, own))
            node.kwargs = _swap(node.kwargs, size, own)
        refresh(model)

    def ensures(self, model: GraphModule) -> list[str]:
        """No call that views a batch takes its size from another tensor."""
        return [f"{n.name} takes its batch size from {size.name}." for n, _, size in self._foreign(model)]

    def _foreign(self, model: GraphModule) -> list[tuple[Node, Node, Node]]:
        """Return (call, tensor it works on, batch size that it takes from elsewhere)."""
        found = []
        for node in model.graph.nodes:
            tensor = node.args[0] if node.args else None
            if node.op not in ("call_function", "call_method") or not isinstance(tensor, Node) or _is_size(tensor):
                continue
            for size in node.all_input_nodes:
                source = _source(size)
                if source is None or source is tensor:
                    continue
                marked = size.meta.get("batch") and tensor.meta.get("batch")
                if marked or ("batch" not in tensor.meta and _follows(tensor, source)):
                    found.append((node, tensor, size))
        return found


def is_batch_size(value: object, tensor: Node) -> bool:
    """Return whether an argument of a call is the batch size of ``tensor``."""
    return isinstance(value, Node) and _source(value) is tensor


def _swap(args: Any, old: Node, new: Node) -> Any:
    """Return ``args`` with one node replaced by another."""
    return map_arg(args, lambda node: new if node is old else node)


def _source(node: Node) -> Node | None:
    """Return the tensor whose dimension 0 a size node reads: ``x.size(0)``, ``x.size()[0]`` or ``x.shape[0]``."""
    if node.op == "call_method" and node.target == "size":
        tensor, dim, *_ = (*node.args, node.kwargs.get("dim"))
        return tensor if dim == 0 and isinstance(tensor, Node) else None
    sizes: Any = node.args[0] if node.target is operator.getitem and node.args[1] == 0 else None
    return sizes.args[0] if _is_shape(sizes) else None


def _is_size(node: Node) -> bool:
    """Return whether the value of ``node`` is a shape or one of its sizes."""
    return _is_shape(node) or (node.op == "call_method" and node.target == "size") or _source(node) is not None


def _is_shape(node: Any) -> bool:
    """Return whether ``node`` is ``x.shape`` or ``x.size()``."""
    if not isinstance(node, Node):
        return False
    attribute = node.target is getattr and node.args[1:2] == ("shape",)
    return attribute or (node.op == "call_method" and node.target == "size" and len(node.args) == 1 and not node.kwargs)


def _follows(tensor: Node, source: Node) -> bool:
    """Return whether layers and elementwise operations, which keep dimension 0, lead from ``source`` to ``tensor``."""
    node: Node | None = tensor
    while node is not None and node is not source:
        if node.op != "call_module" and node.target not in _ELEMENTWISE:
            return False
        node = next((i for i in node.all_input_nodes if i.op != "get_attr"), None)
    return node is source


@dataclass
class _Seen:
    """What is kept of a node's value: shape and one number per sample, or the value of an integer."""

    shape: torch.Size | None = None
    samples: Tensor | None = None
    norm: Tensor | None = None
    number: int | None = None


class _Recorder(Interpreter):
    """Runs a graph and keeps what the batch checks need of every node."""

    def __init__(self, model: GraphModule) -> None:
        super().__init__(model)
        self.seen: dict[Node, _Seen] = {}
        self.last: Node | None = None

    def run_node(self, n: Node) -> Any:
        self.last = n
        value = super().run_node(n)
        self.seen[n] = _summary(value)
        return value


def _summary(value: Any) -> _Seen:
    """Return what to keep: a sample's number is a sum with weights that no two positions share."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _Seen(number=value)
    if not isinstance(value, Tensor):
        return _Seen()
    if value.dim() == 0 or value.is_complex() or value.numel() == 0:
        return _Seen(value.shape)
    rows = value.detach().double().reshape(len(value), -1)
    weights = torch.cos(torch.arange(rows.shape[1], dtype=rows.dtype, device=rows.device))
    return _Seen(value.shape, rows @ weights, rows.norm(dim=1))


def _record(model: GraphModule, example: Any) -> tuple[dict[Node, _Seen], dict[Node, _Seen]] | Problem:
    """Return what three samples give, and what the last two of them give alone; or the problem met."""
    inputs = example if isinstance(example, tuple) else (example,)
    three = [_samples(value, 3) if isinstance(value, Tensor) and value.dim() else value for value in inputs]
    seen = []
    for start in (0, 1):
        recorder = _Recorder(model)
        part = [value[start:] if isinstance(value, Tensor) and value.dim() else value for value in three]
        try:
            with torch.no_grad():
                recorder.run(*part)
        except Exception as error:  # noqa: BLE001 (whatever the user's code raises is the finding)
            node, why = recorder.last, str(error).strip().partition("\n")[0].rstrip(".")
            return Problem(
                key_of(node) if node else type(model).__name__,
                f"fails on a batch of {3 - start}: {why}.",
                "Take the batch size from the tensor itself: x.view(x.size(0), ...).",
                describe(node) if node else "",
            )
        seen.append(recorder.seen)
    return seen[0], seen[1]


def _samples(value: Tensor, count: int) -> Tensor:
    """Return the first ``count`` samples; where there are too few different ones, noisy repetitions."""
    rows = value[torch.arange(count, device=value.device) % len(value)]
    if rows.is_floating_point() and (len(value) < count or bool((rows[0] == rows[1:]).all())):
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(rows.shape, generator=generator).to(rows)
        noise[0] = 0
        rows = rows + noise * (rows.std() if bool(rows.std() > 0) else 1.0)
    return rows


def mark_batch_sizes(model: GraphModule, example: Any) -> None:
    """Set ``meta["batch"]``: whether dimension 0 of a tensor, or a number, is the batch size whatever that is."""
    seen = _record(model, example)
    if isinstance(seen, Problem):
        return  # batch_problems tells
    for node in model.graph.nodes:
        three, two = seen[0][node], seen[1][node]
        sizes = [s.shape[0] if s.shape else s.number for s in (three, two)]
        node.meta["batch"] = sizes == [3, 2]


def batch_problems(model: GraphModule, example: Tensor | Sequence[Any]) -> list[Problem]:
    """Return what mixes the samples of a batch, found by running three samples, then two of them, through the graph.

    The batch must be dimension 0 of every tensor, since time is folded into it, and a sample's value must not
    depend on the other samples. What lies behind a node found is not listed again. ``example`` is a tensor
    [N, ...] or a tuple of inputs; with N < 3 noisy repetitions are added.
    """
    seen = _record(model, example if isinstance(example, Tensor) else tuple(example))
    if isinstance(seen, Problem):
        return [seen]
    problems, spoilt, dependent = [], set(), set()
    for node in model.graph.nodes:
        three, two = seen[0][node], seen[1][node]
        if node.op == "placeholder" or any(source in dependent for source in node.all_input_nodes):
            if three.number is None:
                dependent.add(node)
        if any(source in spoilt for source in node.all_input_nodes):
            spoilt.add(node)
        elif node in dependent and three.shape is not None:
            reason = _mixed(three, two)
            if reason:
                spoilt.add(node)
                remedy = "Keep every sample to itself in dimension 0, or keep the enclosing module whole with skip=."
                problems.append(Problem(key_of(node), reason, remedy, describe(node)))
    return problems


def _mixed(three: _Seen, two: _Seen) -> str:
    """Return why the samples of a node's value are not independent rows, or an empty string."""
    shapes = (three.shape or (), two.shape or ())
    if [tuple(shape)[:1] for shape in shapes] != [(3,), (2,)]:
        return f"gives a tensor of shape {tuple(shapes[0])} for a batch of 3: dimension 0 is not the batch."
    if three.samples is None or two.samples is None or three.norm is None:
        return ""
    alone, together = two.samples, three.samples[1:]
    if torch.allclose(alone, together, rtol=0.0, atol=1e-3 * float(three.norm[1:].max()), equal_nan=True):
        return ""
    return "gives a sample a value that depends on the other samples of the batch, or on chance."
