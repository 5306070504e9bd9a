"""Which operations mix the samples of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from conversion_ext.errors import Problem
from conversion_ext.graph import describe, is_stock, key_of, meta_device, module_of, note
from conversion_ext.graph.evaluation import Environment, call
from conversion_ext.graph.layers import CONVOLUTIONS, TRANSPOSED

__all__ = ["batch_problems", "mark_batch_sizes"]
_TOLERANCE = 1e-2  # a batch of another size takes other kernels; in bfloat16 they differ by almost as much


class _RunError(Exception):
    """Raised where a node cannot run: _RunError(problem)."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def _pairs(model: GraphModule, example: Any, values: bool = True) -> Iterator[tuple[Node, Any, Any]]:
    """Run three samples, and the last two of them alone; iterate over (node, value of three, value of two).

    Every node of the second run gets the inputs that it has in the first one, cut, so that rounding errors do not
    add up until they look like something else. Weight layers keep samples apart; they run once, on one sample.
    Without ``values`` only shapes are computed.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    three = [_samples(value, 3) if isinstance(value, Tensor) and value.dim() else value for value in inputs]
    evaluate = call
    if not values:
        device = next((value.device for value in inputs if isinstance(value, Tensor)), torch.device("cpu"))
        three = [meta_device.shell(value) if isinstance(value, Tensor) else value for value in three]
        evaluate = partial(meta_device.compute, device=device)
    two = [value[1:] if isinstance(value, Tensor) and value.dim() else value for value in three]
    runs = Environment(model, three), Environment(model, two)
    dependent: set[Node] = set()
    for node in model.graph.nodes:
        outcomes: list[Any] = []
        for run, count in zip(runs, (3, 2), strict=True):
            try:
                with torch.no_grad():
                    apart = _keeps_apart(model, node, *runs)
                    if not outcomes:
                        outcomes.append(
                            _of_one(run, node, evaluate) if apart and values else run.compute(node, evaluate)
                        )
                    else:
                        outcomes.append(_last_two(outcomes[0]) if apart else run.compute(node, evaluate))
            except Exception as error:
                why = str(error).strip().partition("\n")[0].rstrip(".")
                remedy = "Take the batch size from the tensor itself: x.view(x.size(0), ...)."
                problem = Problem(key_of(node), f"fails on a batch of {count}: {why}.", remedy, describe(node))
                raise _RunError(problem) from error
        yield node, *outcomes
        if node.op == "placeholder" or dependent.intersection(node.all_input_nodes):
            dependent.add(node)
            outcomes[1] = _cut(*outcomes)
        for run, value in zip(runs, outcomes, strict=True):
            run.keep(node, value)


def _of_one(run: Environment, node: Node, evaluate: Callable[..., Any]) -> Tensor:
    """Return a value of three samples for one sample's work: rows turned and scaled, so that all differ."""
    (source,) = node.all_input_nodes
    given = run.values[source]
    rows = len(given) // 3
    run.values[source] = given[:rows]
    try:
        one: Tensor = run.compute(node, evaluate)
    finally:
        run.values[source] = given
    return torch.cat([one, 0.75 * one.roll(1, -1), 0.5 * one.roll(2, -1)])


def _keeps_apart(model: GraphModule, node: Node, three: Environment, two: Environment) -> bool:
    """Return whether ``node`` calls a weight layer on a batch, which computes every sample by itself."""
    module = module_of(model, node)
    source = node.args[0] if len(node.args) == 1 else None
    if not isinstance(source, Node) or module is None or not is_stock(module):
        return False
    given = two.values.get(source)
    if not isinstance(given, Tensor) or given.dim() < 2 or not _rows(three.values.get(source), given):
        return False
    if isinstance(module, nn.Linear):
        return True
    return isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) and given.dim() == 2 + len(module.kernel_size)


def _cut(three: Any, two: Any) -> Any:
    """Return the last two samples of the first value, in the places where the second holds two samples."""
    if isinstance(three, tuple | list) and isinstance(two, tuple | list) and len(three) == len(two):
        return type(three)(map(_cut, three, two)) if type(three) in (tuple, list) else two
    if isinstance(three, Tensor) and isinstance(two, Tensor) and _rows(three, two) and three.shape[1:] == two.shape[1:]:
        return _last_two(three)
    return two


def _last_two(three: Tensor) -> Tensor:
    """Return the last two samples of three; no shared memory, for an operation in place must not reach the other."""
    return three[len(three) // 3 :].clone()


def _rows(three: Any, two: Any) -> int:
    """Return how many rows of dimension 0 a sample has, given tensors (or numbers) of three and of two; 0 for none."""
    a, b = _length(three), _length(two)
    return a // 3 if a is not None and b is not None and 2 * a == 3 * b else 0


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
    """Set ``info(node).batch``: which multiple of the batch size dimension 0 of a tensor, or a number, always is."""
    try:
        for node, three, two in _pairs(model, example, values=False):
            note(node, batch=_rows(three, two))
    except _RunError:
        return  # batch_problems tells


def _length(value: Any) -> int | None:
    """Return a number, or the size of dimension 0 of a tensor."""
    if isinstance(value, Tensor):
        return len(value) if value.dim() else None
    return value if isinstance(value, int) else None


def batch_problems(model: GraphModule, example: Tensor | Sequence[Any]) -> list[Problem]:
    """Return what mixes the samples of a batch, found by running three samples, then two of them, through the graph.

    The batch must lead dimension 0 of every tensor, [N, ...] or [N k, ...] with the k rows of a sample side by side,
    since time is folded into it, and a sample's value must not depend on the other samples. What lies behind a node
    found is not listed again. Call it after ``run_passes``, when nothing works in place any more. ``example`` is a
    tensor [N, ...] or a tuple of inputs; with N < 3 noisy repetitions are added.
    """
    problems: list[Problem] = []
    spoilt: set[Node] = set()
    dependent: set[Node] = set()  # on the values of the input, not only on its sizes
    try:
        for node, three, two in _pairs(model, example if isinstance(example, Tensor) else tuple(example)):
            sources = node.all_input_nodes
            if node.op == "placeholder" or (dependent.intersection(sources) and not isinstance(three, int)):
                dependent.add(node)
            reason = _mixed(three, two) if node in dependent and node.op != "output" else ""
            if spoilt.intersection(sources):
                spoilt.add(node)
            elif reason:
                spoilt.add(node)
                remedy = "Keep every sample to itself in dimension 0, or keep the enclosing module whole with skip=."
                problems.append(Problem(key_of(node), reason, remedy, describe(node)))
    except _RunError as failure:
        problems.append(failure.problem)
    return problems


def _mixed(three: Any, two: Any) -> str:
    """Return why the samples of a node's value are not independent rows, or an empty string."""
    if not isinstance(three, Tensor):
        return ""
    rows = _rows(three, two)
    if not rows:
        return f"gives a tensor of shape {tuple(three.shape)} for a batch of 3: dimension 0 is not the batch."
    if three.shape[1:] != two.shape[1:]:
        return (
            f"gives a tensor of shape {tuple(three.shape)} for a batch of 3 and {tuple(two.shape)} for a batch of 2: "
            "more than dimension 0 depends on the batch."
        )
    if _agree(three[rows:], two):
        return ""
    if rows > 1 and _agree(three.unflatten(0, (rows, 3))[:, 1:].flatten(0, 1), two):
        return (
            f"gives a tensor of shape {tuple(three.shape)} for a batch of 3, in which the samples come after what they "
            "were folded with: put the batch first before you fold it."
        )
    return "gives a sample a value that depends on the other samples of the batch, or on chance."


def _agree(together: Tensor, alone: Tensor) -> bool:
    """Return whether values are equal up to rounding."""
    if torch.equal(together, alone):
        return True
    together, alone = together.double().nan_to_num(), alone.double().nan_to_num()
    return float((together - alone).norm()) <= _TOLERANCE * float(together.norm())
