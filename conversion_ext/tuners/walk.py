"""The walk: a spiking network and its ANN side by side over calibration data, layer by layer, once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.data.distributed import all_or_none, gathered, rank
from conversion_ext.data.inputs import device_of
from conversion_ext.errors import CalibrationError, require
from conversion_ext.exact import bytes_of
from conversion_ext.network.session import session
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.state import reset
from conversion_ext.neurons import SignedEncoder, advance
from conversion_ext.operators.arithmetic import Sum
from conversion_ext.operators.base import operator_of
from conversion_ext.operators.synapse import Synapse
from conversion_ext.tuners.exact_sums import exact_sum, exact_sum_bounded, largest_magnitude
from conversion_ext.tuners.graph_runners import GraphRunner, SpikingGraphRunner, mean_of
from conversion_ext.tuners.tensor_store import TensorStore
from conversion_ext.types import Steps

__all__ = ["OutputStop", "SiteStop", "SynapseStop", "Task", "walk"]

ROWS = 256  # samples times steps that are run at once
BYTES = 16 << 20  # of their largest activation: more than 32 MiB the allocator would fetch anew from the system
GROUP = 256  # samples of one batch, the parts of which a regression joins


@dataclass(frozen=True)
class Task:
    """What a walk goes over: the ANN's graph, the spiking body made of it (unfolded), and data.

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


@torch.no_grad()
def walk(task: Task) -> Iterator[SiteStop | SynapseStop | OutputStop]:
    """Yield every weight layer and site of ``task.body`` in graph order, and its output, for tuners to change in place.

    When the walk stops at a layer, everything before it is tuned already: its input is what the finished network will
    send it in T steps of constant current, beside what the ANN sends. A layer is run in T steps once, and its spikes
    are kept until the last layer that reads them has run; the data is read once. Of several processes each runs its
    own part of it, and all find the same: what tuners need of all data they ask of ``stop.exact_sum``.
    """
    with TensorStore() as store:
        pair = _SideBySide(task, store)
        try:
            with session(pair.body.sites.values(), advance):
                for stop in pair.stops():
                    pair.advance(stop)
                    yield stop
                    stop.close()
                    store.give_back()
        finally:
            reset(task.body)


class _Stop:
    """A layer at which the walk stops. Data comes in ``parts``, each a number of samples; values are in ANN units.

    ``parts`` are those of this process, of ``count`` in all; ``numbers[part]`` is the place of a part among them, which
    its content decides and not where it is or when it was read. ``groups`` joins parts of one batch.
    """

    def __init__(self, pair: _SideBySide, node: Node, compared_at: Node) -> None:
        self.pair, self.node, self.compared_at = pair, node, compared_at
        self.T = pair.T
        self.parts = range(len(pair.numbers))
        self.numbers, self.count, self.groups = pair.numbers, pair.count, pair.groups
        self.held: list[Any] = []

    def target(self, part: int) -> Tensor:
        """Return what the ANN computes here, [N, ...]."""
        return self.pair.ann.value(self.pair.counterpart[graph.key_of(self.compared_at)], part)

    def mean_input(self, part: int) -> Tensor:
        """Return the mean over the T steps of what the layer is given, [N, ...]."""
        source = self.node.args[0]
        assert isinstance(source, Node)
        return self.kept("mean input", part, lambda: self.pair.body.mean(source, part))

    def true_input(self, part: int) -> Tensor:
        """Return what the ANN gives the layer, [N, ...]."""
        source = self.pair.counterpart[graph.key_of(self.node)].args[0]
        assert isinstance(source, Node)
        return self.pair.ann.value(source, part)

    def kept(self, name: str, part: Any, compute: Callable[[], Tensor]) -> Tensor:
        """Return what is computed once at this stop, and kept until it ends, for tuners ask again and again."""
        key = (name, part)
        if key not in self.pair.store:
            self.pair.store[key] = compute()
            self.held.append(key)
        return self.pair.store[key]

    def sample(self, samples: int, values: int) -> list[int]:
        """Return parts of this process of which all processes together have enough: a random part of the data.

        That is at least so many ``samples``, with so many ``values`` of each channel.
        """
        chosen = self.chosen(samples, values)
        return [part for part in self.parts if self.numbers[part] < chosen]

    def chosen(self, samples: int, values: int) -> int:
        """Return how many parts ``sample`` chooses, of all processes."""
        shape = graph.info(self.node).shape
        positions = shape[2:].numel() if isinstance(shape, torch.Size) else 1
        return min(self.count, math.ceil(self.count * max(samples, values / positions) / self.pair.samples))

    def exact_sum(
        self, of: Callable[[Any], tuple[Tensor, ...]], parts: Iterable[Any] | None = None
    ) -> tuple[Tensor, ...]:
        """Return the sums of ``of(part)`` over the parts (or those given) of all processes, to the same bit in each."""
        chosen = self.parts if parts is None else parts
        return exact_sum((of(part) for part in chosen), self.pair.store, self.pair.device)

    def exact_sum_bounded(
        self, of: Callable[[Any], Tensor], shape: Sequence[int], bound: Tensor, parts: Iterable[Any] | None = None
    ) -> Tensor:
        """Return the sum of ``of(part)`` as ``exact_sum`` does, without keeping terms; ``bound`` no entry exceeds."""
        return exact_sum_bounded(map(of, self.parts if parts is None else parts), shape, bound, self.count)

    def largest_magnitude(
        self, of: Callable[[Any], Tensor], shape: Sequence[int], parts: Iterable[Any] | None = None
    ) -> Tensor:
        """Return the largest absolute value of each entry of ``of(part)``, in ``shape``, in all processes."""
        return largest_magnitude(map(of, self.parts if parts is None else parts), shape, self.pair.device)

    def close(self) -> None:
        """Free what was kept for this stop alone."""
        for key in self.held:
            self.pair.store.pop(key)


class SynapseStop(_Stop):
    """A weight layer (convolution, linear, BatchNorm).

    ``compared_at``: the node whose value is compared with the ANN. It is the layer's own output or, if that only feeds
    additions whose other operands are already computed (a shortcut), the output of the last such addition.
    ``site`` is the ReLU site that alone reads that node, or None; ``shared`` tells whether other calls use the weights.
    """

    def __init__(self, pair: _SideBySide, node: Node, module: nn.Module) -> None:
        super().__init__(pair, node, pair.compared_at(node))
        self.module = module
        calls = [n for n in pair.body.model.graph.nodes if graph.module_of(pair.body.model, n) is module]
        self.shared = len(calls) > 1
        self.varies = node.args[0] in pair.body.varying
        reader = pair.body.sites.get(next(iter(self.compared_at.users))) if len(self.compared_at.users) == 1 else None
        self.site = None if reader is None or isinstance(reader.spec, SignedEncoder) else reader

    def other_operands(self, part: int) -> Tensor:
        """Return the mean over the T steps of all that is added to the layer's output, [N, ...], or a zero []."""
        zero = torch.zeros((), device=self.pair.device)
        if self.compared_at is self.node:
            return zero
        return self.pair.body.mean(self.compared_at, part, {self.node: zero})


class SiteStop(_Stop):
    """A spiking site; ``node`` is its call."""

    def __init__(self, pair: _SideBySide, node: Node, site: SpikingSite) -> None:
        super().__init__(pair, node, node)
        self.site = site

    @property
    def source(self) -> Node:
        """What gives the site its current."""
        (source, *_) = self.node.args
        assert isinstance(source, Node)
        return source

    def current(self, part: int) -> Tensor:
        """Return the site's input as its neurons get it, before ``site.bias``: [T*N, ...], or [N, ...] if constant."""
        key = ("current", part)
        if key in self.pair.store:
            return self.pair.store[key]
        current = self.pair.body.value(self.source, part)
        if self.pair.store.fits(current):  # running the layer again is as cheap as a file
            self.pair.store[key] = current
            self.held.append(key)
        return current

    def emitted(self, part: int) -> Tensor:
        """Return what the site, as it is now, emits in the T steps, or its means over blocks of them, [T, N, ...]."""
        return self.site.emitted(self._spikes(part)).unflatten(0, (self.pair.steps.T, -1))

    def mean_emitted(self, part: int) -> Tensor:
        """Return the mean over the T steps of what the site, as it is now, emits, [N, ...]."""
        return self.site.emitted(mean_of(self._spikes(part).unflatten(0, (self.pair.steps.T, -1))))

    def _spikes(self, part: int) -> Tensor:
        reset(self.site)
        spikes = self.site.spikes(self.current(part), self.pair.steps)
        reset(self.site)
        return spikes

    def close(self) -> None:
        """Keep the spikes of the site as it is now, where a later layer reads them, and free the rest."""
        if self.pair.body.is_read(self.node):
            for part in self.parts:
                self.pair.body.keep_spikes(self.node, part, self._spikes(part))
                self.pair.store.pop(("current", part))
        super().close()


class OutputStop(_Stop):
    """The one output of a network that changes from step to step; ``node`` computes it.

    ``weights``: of the steps in the mean output, set by a tuner; () for equal ones.
    """

    def __init__(self, pair: _SideBySide, node: Node) -> None:
        super().__init__(pair, node, node)
        self.weights: tuple[float, ...] = ()

    def outputs(self, part: int) -> Tensor:
        """Return the outputs of the steps, [T, N, ...]."""
        return self.pair.body.value(self.node, part).unflatten(0, (self.T, -1))

    def target(self, part: int) -> Tensor:
        """Return the output of the ANN, [N, ...]."""
        (output,) = graph.output_of(self.pair.ann.model).all_input_nodes
        return self.pair.ann.value(output, part)


class _SideBySide:
    """The two graphs, and which node of one answers to which of the other."""

    def __init__(self, task: Task, store: TensorStore) -> None:
        self.T = task.T
        self.steps = Steps(task.T // task.block, constant=True, block=task.block)
        self.store = store
        self.device = device_of(task.body)
        self.groups: list[tuple[int, ...]] = []
        self.samples = 0
        digests = all_or_none(lambda: self._read(task))
        self.samples = sum(gathered(self.samples))
        places = [(each, process, i) for process, its in enumerate(gathered(digests)) for i, each in enumerate(its)]
        self.count = len(places)
        require(self.count > 0, "The calibration data holds no batch; pass at least one.", CalibrationError)
        order = {place: number for number, place in enumerate(sorted(places))}
        self.numbers = [order[each, rank(), i] for i, each in enumerate(digests)]
        self.ann = GraphRunner(task.ann, self.store, len(digests))
        self.body = SpikingGraphRunner(task.body, self.store, len(digests), self.steps)
        self.counterpart = {graph.key_of(node): node for node in task.ann.graph.nodes}

    def _read(self, task: Task) -> list[bytes]:
        """Put the inputs in the store in parts of a size that suits T steps; return a digest of each part."""
        shapes = [shape for n in task.ann.graph.nodes if isinstance(shape := graph.info(n).shape, torch.Size)]
        largest = 4 * max((shape.numel() for shape in shapes), default=1)
        digests, rows = list[bytes](), max(1, min(ROWS, BYTES // largest) // task.T)
        for batch in task.batches:
            first = len(digests)
            for values in zip(*[value.split(rows) for value in task.inputs(batch)], strict=True):
                digest = hashlib.sha256()
                self.samples += len(values[0])
                for index, value in enumerate(values):
                    self.store["sample", index, len(digests)] = value
                    digest.update(bytes_of(value))
                digests.append(digest.digest())
            parts, size = range(first, len(digests)), max(1, GROUP // rows)
            self.groups += [tuple(parts[i : i + size]) for i in range(0, len(parts), size)]
        return digests

    def stops(self) -> Iterator[SiteStop | SynapseStop | OutputStop]:
        """Yield every weight layer and site that has a counterpart in the ANN, in graph order, and the output."""
        model = self.body.model
        for node in list(model.graph.nodes):
            module = graph.module_of(model, node)
            if module is None or graph.key_of(node) not in self.counterpart:
                continue
            if isinstance(module, SpikingSite):
                yield SiteStop(self, node, module)
            elif isinstance(operator_of(model, node), Synapse):
                yield SynapseStop(self, node, module)
        (output,) = graph.output_of(model).args
        if isinstance(output, Node) and output in self.body.varying and self.steps.T == self.T:
            yield OutputStop(self, output)

    def compared_at(self, node: Node) -> Node:
        """Return the last of the sums that only the output of ``node`` and earlier values go into."""
        order, start = self.body.order, node
        while len(node.users) == 1:
            (user,) = node.users
            operator = operator_of(self.body.model, user)
            known = all(source is node or order[source] < order[start] for source in user.all_input_nodes)
            adds = isinstance(operator, Sum) and not operator.subtracts and graph.key_of(user) in self.counterpart
            if not (known and adds):
                break
            node = user
        return node

    def advance(self, stop: _Stop) -> None:
        """Run both graphs up to a stop."""
        if isinstance(stop, OutputStop):
            self.body.advance(graph.output_of(self.body.model))
            self.ann.advance(graph.output_of(self.ann.model))
        else:
            self.body.advance(stop.node)
            self.ann.advance(self.counterpart[graph.key_of(stop.node)])
