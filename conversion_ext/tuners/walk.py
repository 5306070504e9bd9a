"""The walk: a spiking network and its ANN side by side over calibration data, layer by layer, once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from tqdm import tqdm

from conversion_ext import graph
from conversion_ext.data.distributed import all_or_none, gathered, rank
from conversion_ext.errors import CalibrationError, require
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.state import reset
from conversion_ext.neurons import SignedEncoder
from conversion_ext.operators.arithmetic import Sum
from conversion_ext.operators.base import operator_of
from conversion_ext.operators.synapse import Synapse
from conversion_ext.tuners.base import Tuner
from conversion_ext.tuners.exact_sums import peak, total, total_within
from conversion_ext.tuners.tensor_store import Shelf
from conversion_ext.types import Steps

__all__ = ["SiteStop", "SynapseStop", "Task", "walk"]


@dataclass(frozen=True)
class Task:
    """What a tuner works on: the ANN's graph, the spiking body made of it (unfolded), and data.

    T steps are run in blocks of ``block``. ``batches`` can be read any number of times; ``inputs(batch)`` returns the
    positional inputs of the network.
    """

    ann: GraphModule
    body: GraphModule
    batches: Iterable[Any]
    inputs: Callable[[Any], tuple[Any, ...]]
    T: int
    block: int = 1
    progress: bool = True


ROWS = 512  # samples times steps that are run at once


@torch.no_grad()
def walk(task: Task, tuners: Sequence[Tuner]) -> None:
    """Let every tuner see every weight layer and site of ``task.body`` in graph order, and change it in place.

    When a tuner stops at a layer, everything before it is tuned already: its input is what the finished network will
    send it in T steps of constant current, beside what the ANN sends. A layer's spikes are computed once and kept
    until the last layer that reads them has run; the data is read once. Of several processes each runs its own part of
    it, and all find the same: what tuners need of all data they ask of ``stop.total``.
    """
    with Shelf() as shelf:
        pair = _Pair(task, shelf)
        for stop in tqdm(list(pair.stops()), desc="tuning", disable=not task.progress):
            pair.advance(stop)
            for tuner in tuners:
                if isinstance(stop, SiteStop):
                    tuner.tune_site(stop)
                else:
                    tuner.tune_synapse(stop)
            stop.close()
    reset(task.body)


class _Stop:
    """A layer at which tuners stop. Data comes in ``parts``, each a number of samples; values are in ANN units.

    ``parts`` are those of this process, of ``count`` in all; ``numbers[part]`` is the place of a part among them, which
    its content decides and not where it is or when it was read.
    """

    def __init__(self, pair: _Pair, node: Node, goal: Node) -> None:
        self.pair, self.node, self.goal = pair, node, goal
        self.T = pair.T
        self.parts = range(len(pair.numbers))
        self.numbers, self.count = pair.numbers, pair.count
        self.held: list[Any] = []

    def wanted(self, part: int) -> Tensor:
        """Return what the ANN computes here, [N, ...]."""
        return self.kept(
            "wanted", part, lambda: self.pair.ann.value(self.pair.counterpart[graph.key_of(self.goal)], part)
        )

    def mean_input(self, part: int) -> Tensor:
        """Return the mean over the T steps of what the layer is given, [N, ...]."""
        source = self.node.args[0]
        assert isinstance(source, Node)
        return self.kept("mean input", part, lambda: self.pair.body.mean(source, part))

    def true_input(self, part: int) -> Tensor:
        """Return what the ANN gives the layer, [N, ...]."""
        source = self.pair.counterpart[graph.key_of(self.node)].args[0]
        assert isinstance(source, Node)
        return self.kept("true input", part, lambda: self.pair.ann.value(source, part))

    def kept(self, name: str, part: int, compute: Callable[[], Tensor]) -> Tensor:
        """Return what is computed once at this stop, and kept until it ends, for tuners ask again and again."""
        key = (name, part)
        if key not in self.pair.shelf:
            self.pair.shelf[key] = compute()
            self.held.append(key)
        return self.pair.shelf[key]

    def total(self, of: Callable[[int], tuple[Tensor, ...]], parts: Iterable[int] | None = None) -> tuple[Tensor, ...]:
        """Return the sums of ``of(part)`` over the parts (or those given) of all processes, to the same bit in each."""
        chosen = self.parts if parts is None else parts
        return total((of(part) for part in chosen), self.pair.shelf, self.pair.device)

    def total_within(self, of: Callable[[int], Tensor], shape: Sequence[int], bound: Tensor) -> Tensor:
        """Return the sum of ``of(part)`` as ``total`` does, without keeping terms; ``bound`` no entry exceeds."""
        return total_within(map(of, self.parts), shape, bound, self.count)

    def peak(self, of: Callable[[int], Tensor], shape: Sequence[int]) -> Tensor:
        """Return the largest absolute value of each entry of ``of(part)``, in ``shape``, in all processes."""
        return peak(map(of, self.parts), shape, self.pair.device)

    def close(self) -> None:
        """Free what was kept for this stop alone."""
        for key in self.held:
            self.pair.shelf.pop(key)


class SynapseStop(_Stop):
    """A weight layer (convolution, linear, BatchNorm).

    ``goal`` is where its output is compared: behind the sums whose other operands come earlier, as at a shortcut.
    ``site`` is the ReLU site that alone reads the goal, or None; ``shared`` tells whether other calls use the weights.
    """

    def __init__(self, pair: _Pair, node: Node, module: nn.Module) -> None:
        super().__init__(pair, node, pair.goal(node))
        self.module = module
        calls = [n for n in pair.body.model.graph.nodes if graph.module_of(pair.body.model, n) is module]
        self.shared = len(calls) > 1
        self.varies = node.args[0] in pair.body.varying
        reader = pair.body.sites.get(next(iter(self.goal.users))) if len(self.goal.users) == 1 else None
        self.site = None if reader is None or isinstance(reader.spec, SignedEncoder) else reader

    def rest(self, part: int) -> Tensor:
        """Return the mean over the T steps of all that is added to the layer's output, [N, ...], or a zero []."""
        zero = torch.zeros((), device=self.wanted(part).device)
        if self.goal is self.node:
            return zero
        return self.kept("rest", part, lambda: self.pair.body.mean(self.goal, part, {self.node: zero}))


class SiteStop(_Stop):
    """A spiking site; ``node`` is its call."""

    def __init__(self, pair: _Pair, node: Node, site: SpikingSite) -> None:
        super().__init__(pair, node, node)
        self.site = site

    def current(self, part: int) -> Tensor:
        """Return the site's input as its neurons get it, before ``site.bias``: [T*N, ...], or [N, ...] if constant."""
        source = self.node.args[0]
        assert isinstance(source, Node)
        return self.kept("current", part, lambda: self.pair.body.value(source, part))

    def emitted(self, part: int) -> Tensor:
        """Return what the site, as it is now, emits in the T steps, or its means over blocks of them, [T, N, ...]."""
        steps = self.pair.steps
        reset(self.site)
        emitted = self.site(self.current(part), steps)
        reset(self.site)
        return emitted.unflatten(0, (steps.T, -1))


class _Pair:
    """The two graphs, and which node of one answers to which of the other."""

    def __init__(self, task: Task, shelf: Shelf) -> None:
        self.T = task.T
        self.steps = Steps(task.T // task.block, constant=True, block=task.block)
        self.shelf = shelf
        self.device = next((p.device for p in task.body.parameters()), torch.device("cpu"))
        digests = all_or_none(lambda: self._read(task))
        places = [(each, process, i) for process, its in enumerate(gathered(digests)) for i, each in enumerate(its)]
        self.count = len(places)
        require(self.count > 0, "The calibration data holds no batch; pass at least one.", CalibrationError)
        order = {place: number for number, place in enumerate(sorted(places))}
        self.numbers = [order[each, rank(), i] for i, each in enumerate(digests)]
        self.ann = _Lane(task.ann, self.shelf, len(digests), None)
        self.body = _Lane(task.body, self.shelf, len(digests), self.steps)
        self.counterpart = {graph.key_of(node): node for node in task.ann.graph.nodes}

    def _read(self, task: Task) -> list[bytes]:
        """Put the inputs on the shelf in parts of a size that suits T steps; return a digest of each part."""
        digests, rows = list[bytes](), max(1, ROWS // task.T)
        for batch in task.batches:
            for values in zip(*[value.split(rows) for value in task.inputs(batch)], strict=True):
                digest = hashlib.sha256()
                for index, value in enumerate(values):
                    self.shelf["sample", index, len(digests)] = value
                    digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
                digests.append(digest.digest())
        return digests

    def stops(self) -> Iterator[SiteStop | SynapseStop]:
        """Yield every weight layer and site that has a counterpart in the ANN, in graph order."""
        model = self.body.model
        for node in model.graph.nodes:
            module = graph.module_of(model, node)
            if module is None or graph.key_of(node) not in self.counterpart:
                continue
            if isinstance(module, SpikingSite):
                yield SiteStop(self, node, module)
            elif isinstance(operator_of(model, node), Synapse):
                yield SynapseStop(self, node, module)

    def goal(self, node: Node) -> Node:
        """Return the last of the sums that only the output of ``node`` and earlier values go into."""
        order, start = self.body.order, node
        while len(node.users) == 1:
            (user,) = node.users
            meaning = operator_of(self.body.model, user)
            known = all(source is node or order[source] < order[start] for source in user.all_input_nodes)
            adds = isinstance(meaning, Sum) and not meaning.subtracts and graph.key_of(user) in self.counterpart
            if not (known and adds):
                break
            node = user
        return node

    def advance(self, stop: _Stop) -> None:
        """Run both graphs up to a stop."""
        self.body.advance(stop.node)
        self.ann.advance(self.counterpart[graph.key_of(stop.node)])


class _Lane:
    """One graph, run node by node on all parts of the data.

    Values of sites and of nodes with several readers are kept until their last reader has run, those of sites as
    spikes in bytes; all others are computed when asked for.
    """

    def __init__(self, model: GraphModule, shelf: Shelf, parts: int, steps: Steps | None) -> None:
        self.model, self.shelf, self.parts, self.steps = model, shelf, parts, steps
        nodes = list(model.graph.nodes)
        self.order = {node: index for index, node in enumerate(nodes)}
        self.inputs = graph.inputs_of(model)
        self.sites: dict[Node, SpikingSite] = dict(graph.modules_called(model, SpikingSite))
        self.keeps = [n for n in nodes if n in self.sites or (n.op.startswith("call") and len(n.users) > 1)]
        self.varying = set[Node]() if steps is None else graph.varying(model.graph, self.inputs[-1:])
        self.last = self._last_readers(nodes)
        self.done = 0  # nodes of `keeps` before this index have run

    def _last_readers(self, nodes: list[Node]) -> dict[Node, int]:
        """Return, for each node that is kept, the index of the last node whose computation reads its value."""
        kept, reads = set(self.keeps), dict[Node, set[Node]]()
        last = dict.fromkeys(self.keeps, 0)
        for node in nodes:
            reads[node] = {k for s in node.all_input_nodes for k in ({s} if s in kept else reads[s])}
            for source in reads[node]:
                last[source] = self.order[node]
        return last

    def advance(self, node: Node) -> None:
        """Compute what is kept and comes before ``node``; drop what neither it nor any later node reads."""
        while self.done < len(self.keeps) and self.order[self.keeps[self.done]] < self.order[node]:
            kept = self.keeps[self.done]
            for part in range(self.parts):
                value = self._spikes(kept, part) if kept in self.sites else self.value(kept, part)
                if isinstance(value, Tensor):  # sizes, and the parts of a split, are computed anew
                    self.shelf[id(self), kept, part] = value
            self.done += 1
        for kept in self.keeps[: self.done]:
            if self.last[kept] < self.order[node]:
                for part in range(self.parts):
                    self.shelf.pop((id(self), kept, part))

    def value(self, node: Node, part: int, known: dict[Node, Any] | None = None) -> Any:
        """Return the value of ``node``, given that of the nodes in ``known``."""
        known = {} if known is None else known
        if node not in known:
            known[node] = self._look_up(node, part, known)
        return known[node]

    def mean(self, node: Node, part: int, known: dict[Node, Any] | None = None) -> Tensor:
        """Return the mean of ``node`` over the steps, [N, ...]."""
        value = self.value(node, part, known)
        if node not in self.varying:
            return value
        assert self.steps is not None
        return value.unflatten(0, (self.steps.T, -1)).mean(0)

    def _look_up(self, node: Node, part: int, known: dict[Node, Any]) -> Any:
        key = (id(self), node, part)
        if node.op == "placeholder":
            index = self.inputs.index(node)
            return self.steps if node in self.varying else self.shelf["sample", index, part]
        if node in self.sites:
            spikes = self.shelf[key] if key in self.shelf else self._spikes(node, part, known)
            site = self.sites[node]
            assert self.steps is not None
            return site.emitted(spikes.to(site.threshold.dtype) / self.steps.block)
        if key in self.shelf:
            return self.shelf[key]
        value = partial(self.value, part=part, known=known)
        if node.op != "call_module":
            return graph.call(self.model, node, value)
        module = self.model.get_submodule(str(node.target))
        reset(module)
        result = graph.call(self.model, node, value)
        reset(module)
        return result

    def _spikes(self, node: Node, part: int, known: dict[Node, Any] | None = None) -> Tensor:
        """Return the spikes of a site in each block, [T*N, ...], in bytes where they fit."""
        site, source = self.sites[node], node.args[0]
        assert isinstance(source, Node)
        assert self.steps is not None
        reset(site)
        spikes = site.spikes(self.value(source, part, known), self.steps)
        reset(site)
        most = site.largest * self.steps.block
        return (spikes * self.steps.block).round().to(torch.int8 if most < 128 else torch.int32)
