"""The time loop: what does not depend on time runs once, the rest in chunks of steps folded into the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from conversion_ext import graph
from conversion_ext.errors import require
from conversion_ext.neurons import advance, advance_compiled
from conversion_ext.nn.root import Memories, Root
from conversion_ext.nn.stateful import state_dtype
from conversion_ext.precision import narrowed
from conversion_ext.readouts import Readout
from conversion_ext.schedule import Schedule, schedule
from conversion_ext.types import Steps

__all__ = ["Decoder", "Engine", "Reader"]

Reader = Callable[[int, int], tuple[Any, ...]]
"""``(first step, number of steps K) -> inputs [K, N, ...]``, to be called in order."""

# Bytes of an average activation of one call on a CPU: more steps per call save Python, and weights are read less often,
# until activations leave a cache of a few MiB. Measured on the 28x28 networks of tests/benchmarks at batch 1 to 64.
CACHE = 5 << 20


class Engine:
    """Runs a converted network over time. Built once, used for any number of batches."""

    def __init__(
        self,
        snn: Root,
        dtype: str | torch.dtype | None = None,
        weights: str | None = None,
        compile: bool = False,  # noqa: A002
    ) -> None:
        require(
            snn.conversion.widths is None or (dtype is None and weights is None),
            "dtype= and weights= would round what is in integers already; leave them out.",
        )
        self.snn = snn
        self.run = advance_compiled if compile else advance
        self.prologue, self.main = halves(snn.body)
        if dtype is not None or weights is not None:  # the prologue is run once: nothing to gain from fewer bits
            self.main = split(narrowed(snn.body, dtype, weights))[1]
        self.narrow = dtype is not None
        self.sites = snn.sites()
        self.memories = Memories(snn)
        sizes = [shape.numel() for n in snn.body.graph.nodes if isinstance(shape := n.meta.get("shape"), torch.Size)]
        self.size = sum(sizes) / max(1, len(sizes))

    def schedule(self, T: int | None, block: int | None = None, length: int | None = None) -> Schedule:
        """Return the schedule of a run: see :func:`schedule`."""
        return schedule(self.snn, self.sites, T, block, length)

    def chunks(self, N: int, plan: Schedule, time_chunk: int | None) -> Iterator[int]:
        """Yield how many steps (or blocks) to run in each call; no call goes beyond the end of the warm-up."""
        chunk = max(plan.together, time_chunk // plan.block if time_chunk else int(CACHE / (4 * N * self.size)))
        for steps in (plan.warm_up, plan.T // plan.block):
            yield from (min(chunk, steps - first) for first in range(0, steps, chunk))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Own the state of the network: no autograd, and it is overwritten where that saves a copy."""
        self.memories.map(lambda part: part.detach().clone())
        try:
            for site in self.sites.values():
                site.owner = self.run
            with torch.inference_mode():
                yield
        finally:
            for site in self.sites.values():
                site.owner = None
            # What was made in inference mode cannot be written to, or have gradients, after it.
            self.memories.map(lambda part: part.clone() if part.is_inference() else part)

    def constant(self, inputs: tuple[Any, ...], chunks: Iterable[int], block: int = 1) -> Iterator[tuple[int, Any]]:
        """Yield (K, output [K*N, ...]) of ``chunks`` of K steps under constant current, the prologue run once."""
        static = self.prologue(*inputs)
        for K in chunks:
            yield K, self.advance(static, K, block)

    def advance(self, static: tuple[Any, ...], K: int, block: int = 1) -> Any:
        """Return the output [K*N, ...] of the next K steps (or blocks) under what the prologue made of the input."""
        return self._wide(self.main(*static, Steps(K, constant=True, block=block)))

    def sequence(self, read: Reader, chunks: Iterable[int], block: int = 1) -> Iterator[tuple[int, Any]]:
        """Yield (K, output [K*N, ...]) for inputs ``read(first, K)``, each [K, N, ...]."""
        first = 0
        for K in chunks:
            folded = tuple(v.flatten(0, 1) if isinstance(v, Tensor) else v for v in read(first, K))
            yield K, self._wide(self.main(*self.prologue(*folded), Steps(K, block=block)))
            first += K

    def _wide(self, output: Any) -> Any:
        """Return an output of narrowed layers in float32 or wider."""
        return tree_map(lambda v: v.to(state_dtype(v.dtype)), output) if self.narrow else output


class Decoder:
    """A readout at work on nested outputs, step by step: a cumulative sum would round differently."""

    def __init__(self, readout: Readout) -> None:
        self.readout = readout
        self.t = 0
        self.memories: list[tuple[Tensor, ...]] = []
        self.dtypes: list[torch.dtype] = []
        self.spec: Any = None

    def steps(self, output: Any, K: int, block: int = 1) -> Iterator[int]:
        """Take up ``output`` [K*N, ...] step by step, each ``block`` times; yield t after each."""
        leaves, self.spec = tree_flatten(output)
        parts = [leaf.unflatten(0, (K, -1)) for leaf in leaves]
        for k in (k for k in range(K) for _ in range(block)):
            if self.t == 0:
                self.memories = [self.readout.begin(part[0]) for part in parts]
                self.dtypes = [part.dtype for part in parts]
            self.t += 1
            self.memories = [
                self.readout.step(memory, part[k], self.t) for memory, part in zip(self.memories, parts, strict=True)
            ]
            yield self.t

    def decode(self) -> list[Tensor]:
        """Return the tensors of the output after the steps so far."""
        pairs = zip(self.memories, self.dtypes, strict=True)
        return [self.readout.decode(memory, self.t).to(dtype) for memory, dtype in pairs]

    def keep(self, index: Tensor) -> None:
        """Go on with the samples ``index``."""
        self.memories = [tuple(part[index] for part in memory) for memory in self.memories]

    def nest(self, leaves: list[Tensor]) -> Any:
        """Put leaves back into the structure of the output."""
        return tree_unflatten(leaves, self.spec)


# A split compiles two modules, longer than many a step. A body that changes or is copied is split anew.
_halves: WeakKeyDictionary[GraphModule, tuple[list[Any], tuple[GraphModule, GraphModule]]] = WeakKeyDictionary()


def halves(body: GraphModule) -> tuple[GraphModule, GraphModule]:
    """Return ``split(body)``, made once for the code of ``body`` and the modules and tensors that it names."""
    named = [graph.attribute_of(body, n) for n in body.graph.nodes if n.op in ("call_module", "get_attr")]
    now = [body.code, *named]
    seen, found = _halves.get(body, ([], None))
    if found is None or len(seen) != len(now) or any(a is not b for a, b in zip(seen, now, strict=True)):
        found = split(body)
        _halves[body] = now, found
    return found


def split(body: GraphModule) -> tuple[GraphModule, GraphModule]:
    """Return (prologue, main): main(*prologue(*inputs), steps) equals body(*inputs, steps) under constant current.

    The prologue is everything that the ``steps`` input does not reach.
    """
    steps = [n for n in body.graph.nodes if n.op == "placeholder"][-1]
    varying: set[Node] = {steps}
    for node in body.graph.nodes:
        if node.op != "output" and any(source in varying for source in node.all_input_nodes):
            varying.add(node)
    static = [n for n in body.graph.nodes if n not in varying and n.op not in ("get_attr", "output")]
    crossing = [n for n in static if any(user in varying or user.op == "output" for user in n.users)]
    before, copies = Graph(), dict[Node, Node]()
    for node in body.graph.nodes:
        if node not in varying and node.op != "output":
            copies[node] = before.node_copy(node, copies.__getitem__)
    before.output(tuple(copies[node] for node in crossing))
    after, copies = Graph(), dict[Node, Node]()
    for node in crossing:
        copies[node] = after.placeholder(node.name)
    for node in body.graph.nodes:
        if node in varying or node.op in ("get_attr", "output"):
            copies[node] = after.node_copy(node, copies.__getitem__)
    return GraphModule(body, before), GraphModule(body, after)
