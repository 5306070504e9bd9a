"""The user's own network as the judge of its captured graph."""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from conversion_ext.capture.module_calls import patched
from conversion_ext.capture.private_copy import effective_hooks, has_hooks, private_copy
from conversion_ext.capture.recorded_values import RefusedError
from conversion_ext.errors import Problem
from conversion_ext.graph import describe, key_of
from conversion_ext.graph.evaluation import Environment
from conversion_ext.graph.values import tensors_in

__all__ = ["Reference", "disagreement", "few", "random_states_kept", "reference_run", "rewriting_problem"]

SAMPLES = 3
_STEADY = "Make it deterministic, for example with self.training."
EXACT = {torch.float64: 1e-9, torch.float32: 1e-4}  # the same operations in the same order, but for memory layouts
REWRITTEN = {torch.float64: 1e-6, torch.float32: 1e-2}  # folded BatchNorms round differently


@dataclass(frozen=True)
class Reference:
    """What the user's network returns for the first samples of the example, and whether it drew random numbers."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    random: bool

    def differs(self, outputs: Any, rewritten: bool = False) -> bool:
        """Return whether other outputs for the same samples are not those of the user's network."""
        values = tensors_in(outputs)
        tolerances = REWRITTEN if rewritten else EXACT
        return len(values) != len(self.outputs) or not all(
            _close(a, b, tolerances.get(b.dtype, 3e-2)) for a, b in zip(values, self.outputs, strict=True)
        )


def few(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return copies of the first samples of a batch, which the network may overwrite."""
    batch = next((len(value) for value in inputs if value.dim()), None)
    return tuple(
        (value[:SAMPLES] if value.dim() and len(value) == batch else value).detach().clone() for value in inputs
    )


def reference_run(model: nn.Module, inputs: tuple[Tensor, ...], call: Callable[[nn.Module, Any], Any]) -> Reference:
    """Run the private copy as its user does, hooks included, and leave those hooks on it that change values.

    Raises what the network raises. The random numbers of the process are left as they were.
    """
    given = tuple(value.clone() for value in inputs)
    # A hook may ask for gradients (Grad-CAM), so they are there as the user has them.
    with random_states_kept(), torch.set_grad_enabled(has_hooks(model)):
        before = _random_states()
        torch.manual_seed(0x5EED)  # not the numbers that the capture draws
        start = torch.get_rng_state()
        outputs = effective_hooks(model, lambda: call(model, list(given)))
        drawn = not torch.equal(start, torch.get_rng_state())
        if _random_states() != before:
            raise RefusedError("draws random numbers in Python in evaluation mode too.", _STEADY)
    kept = tuple(value.detach().clone() for value in tensors_in(outputs))
    return Reference(inputs, kept, drawn)


def disagreement(
    ann: nn.Module, captured: GraphModule, reference: Reference, call: Callable[[nn.Module, Any], Any]
) -> Problem | None:
    """Return where the captured graph differs from the user's network on the reference's samples, None where nowhere.

    The first module whose output differs is named; what is wrong lies there or just before it.
    """
    try:
        with torch.no_grad():
            outputs = captured.forward(*(value.clone() for value in reference.inputs))  # a call prints what fails
    except Exception:  # the graph does not even run: where it differs is found below
        outputs = None
    if outputs is not None and not reference.differs(outputs):
        return None
    seen = _module_outputs(ann, reference.inputs, call)
    with torch.no_grad():
        first = _first_difference(captured, reference.inputs, seen)
    return _problem(type(ann).__name__, first, reference.random)


def rewriting_problem(network: str, model: GraphModule, reference: Reference) -> Problem | None:
    """Return a sentence if the rewritten graph no longer computes what the user's network does, else None."""
    with torch.no_grad():
        outputs = model.forward(*(value.clone() for value in reference.inputs))
    if not reference.differs(outputs, rewritten=True):
        return None
    if reference.random:
        return _problem(network, None, drawn=True)
    return Problem(
        network,
        "the graph computed something else than the network after it was rewritten.",
        "Please report it; meanwhile write operations in place as ones that return their result.",
    )


def _problem(network: str, node: Node | None, drawn: bool) -> Problem:
    """Return the sentence on where the graph and the network differ."""
    if drawn:
        return Problem(
            network,
            "draws random numbers in evaluation mode too.",
            _STEADY,
        )
    place, line = (network, "") if node is None else (key_of(node), describe(node))
    what = "only the network's output differs" if node is None else "this is the first module whose output differs"
    return Problem(
        place,
        f"the captured graph does not compute what the network computes on the first batch: {what}.",
        "Look before it for an attribute of a layer that forward changes, and for Python code outside of torch; or "
        "keep the module around it whole with skip=.",
        line,
    )


def _first_difference(model: GraphModule, inputs: tuple[Tensor, ...], seen: dict[str, list[Any]]) -> Node | None:
    """Return the first call of a module whose output is not the one seen in the user's network."""
    run = Environment(model, [value.clone() for value in inputs])
    for node in model.graph.nodes:
        try:
            value = run.compute(node)
        except Exception:
            return node
        run.keep(node, value)
        if node.op == "call_module":
            calls = seen.get(str(node.target), [])
            expected, actual = calls.pop(0) if calls else (), tensors_in(value)
            if len(actual) != len(expected) or not all(
                _close(a, b, EXACT.get(b.dtype, 3e-2)) for a, b in zip(actual, expected, strict=True)
            ):
                return node
    return None


def _module_outputs(
    ann: nn.Module, inputs: tuple[Tensor, ...], call: Callable[[nn.Module, Any], Any]
) -> dict[str, list[Any]]:
    """Return {path: outputs of each call} of every module of the user's network, before its own hooks."""
    model, seen = private_copy(ann), defaultdict[str, list[Any]](list)

    def watch(module: nn.Module, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        value = forward(*args, **kwargs)
        seen[path].append([tensor.detach().clone() for tensor in tensors_in(value)])
        return value

    with patched(model, lambda module, path: watch), random_states_kept(), torch.set_grad_enabled(has_hooks(model)):
        call(model, [value.clone() for value in inputs])
    return seen


def _close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Return whether two tensors agree up to rounding, relative to the largest value."""
    if actual.shape != expected.shape:
        return False
    if not (expected.is_floating_point() and actual.is_floating_point()):
        return torch.equal(actual, expected)
    a, b = actual.double().nan_to_num(), expected.double().nan_to_num()
    return bool((a - b).abs().amax() <= tolerance * b.abs().amax()) if b.numel() else True


def _random_states() -> Any:
    """Return the states of the generators that Python code draws from."""
    numpy = sys.modules.get("numpy")
    state = None if numpy is None else numpy.random.get_state()
    return random.getstate(), None if state is None else (state[0], state[1].tolist(), *state[2:])


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Leave the random numbers of the process, of torch, Python and numpy, as they were."""
    states, numpy = _random_states(), sys.modules.get("numpy")
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        if numpy is not None and states[1] is not None:
            numpy.random.set_state(states[1])
