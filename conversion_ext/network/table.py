"""What a converted network consists of, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.graph.layers import TRANSPOSED
from conversion_ext.network.clocks import latency_of
from conversion_ext.network.module_operators import Spiking
from conversion_ext.network.record import Record, Widths
from conversion_ext.network.site import SpikingSite
from conversion_ext.nn.channel_scale import ChannelScale
from conversion_ext.nn.matrix_product import MatrixProduct
from conversion_ext.operators.arithmetic import Sum
from conversion_ext.operators.base import NodeContext, Operator, operator_of
from conversion_ext.operators.movement import mixed
from conversion_ext.operators.synapse import Synapse
from conversion_ext.tables import Report, Sheet, plain
from conversion_ext.types import SPIKES, Family

__all__ = ["Conversion", "Row", "Table", "macs_of_product"]


@dataclass(frozen=True)
class Row:
    """One line of the table: ``sees`` is the family of the input, ``emits`` that of the output.

    Of a site: ``neurons``, how many it has, and ``lag``, how many steps after the first input it makes its first.
    ``macs``: the multiply-adds of a weight layer, or of a product of two values, on one sample in the ANN.
    """

    key: str
    kind: str
    sees: Family
    emits: Family
    scale: str = ""
    neurons: int = 0
    lag: int = 0
    macs: int = 0


class Table(Report, list[Row]):
    """Rows in graph order, a list; prints as a table."""

    @property
    def spike_driven(self) -> float:
        """Which share of the multiply-adds, products of two values included, works on spikes: additions alone."""
        driven = sum(row.macs for row in self if row.kind == "synapse" and row.sees in SPIKES)
        return driven / max(1, sum(row.macs for row in self))

    def sheet(self) -> Sheet:
        """Return one row per site, weight layer and scale."""
        header = ("node", "kind", "sees", "emits", "threshold or scale", "neurons", "lag")
        rows = []
        for row in self:
            counts = (str(row.neurons), str(row.lag)) if row.neurons else ("", "")
            rows.append((row.key, row.kind, str(row.sees), str(row.emits), row.scale, *counts))
        notes = [f"{100 * self.spike_driven:.1f} % of {sum(row.macs for row in self):,} multiply-adds work on spikes."]
        notes += [] if any(row.neurons for row in self) else ["No neuron of this network spikes."]
        return Sheet(header, rows, notes=notes, left=len(header))

    def to_dict(self) -> dict[str, Any]:
        """Return the rows as plain data."""
        return {"rows": [plain(row) for row in self]}


class Conversion(Report):
    """A view of a converted network; thresholds live in its sites and are read from there."""

    def __init__(self, body: GraphModule, record: Record) -> None:
        self._body = body
        self._record = record

    @property
    def recipe(self) -> Any:
        """The recipe that made the network."""
        return self._record.recipe_value

    @property
    def T(self) -> int | None:
        """The number of steps it was optimised for, None for no particular one."""
        return self._record.T

    @property
    def backend(self) -> str:
        """The framework whose neurons it holds."""
        return self._record.backend

    @property
    def folded(self) -> bool:
        """Whether weights hold the thresholds, so that spikes are {0, 1}."""
        return self._record.folded

    @property
    def widths(self) -> Widths | None:
        """The bits of a network in integers (``conversion_ext.integer``), None for one in floating point."""
        return self._record.widths

    @property
    def samples(self) -> int:
        """How many calibration samples were seen."""
        return self._record.samples

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes of the conversion: dead channels, cloned weights."""
        return self._record.notes

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages that made the network."""
        return dict(self._record.versions)

    @property
    def thresholds(self) -> dict[str, Tensor]:
        """{site key: threshold of one spike in ANN units, [] or [C]} in graph order."""
        return {site.key: site.threshold for site in self._sites()}

    @property
    def neurons(self) -> dict[str, int]:
        """{site key: how many neurons it has for one sample} in graph order."""
        return {row.key: row.neurons for row in self.table() if row.neurons}

    @property
    def lag(self) -> int:
        """By how many steps the output lags behind the input, since sites look ahead: no output is earlier."""
        return latency_of(self._body)

    @property
    def latency_steps(self) -> int | None:
        """Steps from the first input to the decision, end to end: T and the lag; None without a T.

        Counts what is part of the network. What a simulation adds (blocks, warm-up, waiting) is in its own
        ``latency_steps``.
        """
        return None if self.T is None else self.T + self.lag

    @property
    def family(self) -> Family:
        """The widest family that neurons, pools and differential operators emit."""
        return mixed([row.emits for row in self.table() if row.kind not in ("synapse", "shortcut", "scale")])

    def table(self) -> Table:
        """Return one row per site, weight layer and scale: what it sees, what it emits, its threshold or scale."""
        families: dict[Node, Family] = {}
        rows = Table()
        steps = graph.steps_of(self._body)
        for node in self._body.graph.nodes:
            if node is steps:
                continue
            inputs = [n for n in node.all_input_nodes if n in families]
            operator = operator_of(self._body, node)
            assert isinstance(operator, Operator)
            if node.op != "placeholder" and type(operator) is Operator:
                continue  # a size or a parameter
            sees = [families[n] for n in inputs]
            if node.op == "placeholder" or not sees:
                input_family = self.recipe.encoder.family if node.op == "placeholder" else Family.ANALOG
                families[node] = input_family
                continue
            context = NodeContext(self._body, node, inputs, [], None)
            families[node] = operator.family_out(context, sees)
            row = self._row(node, operator, mixed(sees), families[node])
            if row is not None:
                rows.append(row)
        return rows

    def _row(self, node: Node, operator: Operator, sees: Family, emits: Family) -> Row | None:
        module = graph.module_of(self._body, node)
        key = graph.key_of(node)
        if isinstance(module, SpikingSite):
            neurons = graph.info(node).shape.numel() if graph.info(node).is_tensor else 0
            lag = 0 if module.clock is None else module.clock.lag + module.clock.d
            kind = type(module.spec).__name__ + (f" x {module.neurons}" if module.neurons > 1 else "")
            return Row(key, kind, sees, emits, _range(module.threshold), neurons * module.neurons, lag)
        if isinstance(module, ChannelScale):
            kind = "shortcut" if any(isinstance(operator_of(self._body, u), Sum) for u in node.users) else "scale"
            return Row(key, kind, sees, emits, _range(module.scale))
        if isinstance(operator, Synapse):
            return Row(key, "synapse", sees, emits, macs=_macs(node, module))
        if isinstance(operator, Spiking) or operator.stateful:
            macs = macs_of_product(node) if isinstance(module, MatrixProduct) else 0
            return Row(key, type(module).__name__, sees, emits, macs=macs)
        return None

    def _sites(self) -> Sequence[SpikingSite]:
        modules = dict(self._body.named_modules())
        called = [modules[str(n.target)] for n in self._body.graph.nodes if n.op == "call_module"]
        return [module for module in called if isinstance(module, SpikingSite)]

    def sheet(self) -> Sheet:
        """Return the table below a line of what was done, and the notes."""
        table = self.table().sheet()
        return Sheet(table.header, table.rows, self._line(), (*table.notes, *self.notes), table.left)

    def to_dict(self) -> dict[str, Any]:
        """Return what was done as plain data; the recipe as text."""
        names = ("T", "backend", "folded", "samples", "notes", "versions", "thresholds", "lag", "latency_steps")
        values = {name: plain(getattr(self, name)) for name in names} | {"family": str(self.family)}
        return {"recipe": repr(self.recipe)} | values | self.table().to_dict()

    def __repr__(self) -> str:
        return self._line()

    def _line(self) -> str:
        return (
            f"Conversion(recipe={self._record.recipe!r}, T={self.T}, backend={self.backend!r}, "
            f"sites={len(self._record.sites)}, family={self.family}, folded={self.folded})"
        )


def _macs(node: Node, layer: Any) -> int:
    """Return the multiply-adds of a weight layer on one sample: every weight at every position."""
    transposed = isinstance(layer, TRANSPOSED)
    shape = graph.info(node.all_input_nodes[0] if transposed else node).shape
    weight = getattr(layer, "weight", None)
    if not isinstance(shape, torch.Size) or not isinstance(weight, Tensor):
        return 0
    return shape.numel() * weight[0].numel() if weight.dim() > 1 else shape.numel()


def macs_of_product(node: Node) -> int:
    """Return the multiply-adds of a product of two matrices of one sample."""
    shape, first = graph.info(node).shape, graph.info(node.all_input_nodes[0]).shape
    return shape.numel() * first[-1] if isinstance(shape, torch.Size) and isinstance(first, torch.Size) else 0


def _range(scale: Tensor) -> str:
    low, high = scale.min().item(), scale.max().item()
    return f"{low:.4g}" if low == high else f"{low:.4g} .. {high:.4g}"
