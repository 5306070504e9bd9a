"""A converted network in integers, as digital neuromorphic hardware computes it: the same ones in every backend."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.backends import get_backend
from conversion_ext.conversion.memory_format import channels_last
from conversion_ext.data.batches import check_inputs
from conversion_ext.errors import Problem, UnsupportedError, require
from conversion_ext.graph.shapes import propagate
from conversion_ext.integer.forms import MEANS, Constants, Grid, integer_form, refused, scaled
from conversion_ext.integer.modules import IntegerInput
from conversion_ext.network.record import Widths
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.network.state import reset
from conversion_ext.nn.channel_scale import ChannelScale
from conversion_ext.operators.arithmetic import Multiple, Offset
from conversion_ext.operators.base import Elementwise, NodeContext, Operator, context_of, ones, operator_of
from conversion_ext.operators.linear_map import LinearMap
from conversion_ext.operators.movement import Element, Movement
from conversion_ext.operators.synapse import Synapse
from conversion_ext.simulation.samples import require_network
from conversion_ext.types import Family, Steps

__all__ = ["integers"]
EXACT = {torch.float32: 23, torch.float64: 52}  # bits of a magnitude that floating point adds and halves without error
ACCUMULATOR = 31  # bits of a magnitude
MOST = {"weight": 16, "state": 32, "input": 16}


def integers(
    snn: SpikingNetwork,
    x: Any,
    *,
    weight_bits: int = 8,
    state_bits: int = 24,
    input_bits: int = 8,
    threshold_bits: int | None = None,
    even_weights: bool = False,
    overflow: str = "refuse",
) -> SpikingNetwork:
    """Return a copy of ``snn`` that computes in integers: weights, inputs, currents and potentials.

    Each is an integer times a power of two, which floating point adds without error, so that the neurons of every
    framework, whose threshold is 1, compute the same integers, spike for spike. ``parameters`` lists them. (That is
    tested on CPUs; a GPU's TF32 or Winograd convolutions round, so turn them off there.)

    - Weights: integers of ``weight_bits`` bits times 2^-k, with the k per output channel that errs least. With
      ``even_weights`` they are as Loihi 2 stores them where signs mix: even integers, up to 254 for 8 bits, with one k
      for a layer, no finer than 64 units of the potential: convert with thresholds per layer, or one nearly silent
      channel makes them coarse.
    - Accumulators: 32 bits. The most that a sum can reach is known before any run, and refused if it is more, or more
      than the dtype of ``snn`` holds exactly (float32: 23 bits and sign; the error then asks for ``snn.double()``).
    - Potentials: ``state_bits`` bits, threshold ``2^threshold_bits``; currents are rounded to them, halves up. One
      that leaves the width is a StateError with its site; with ``overflow="saturate"`` it stays at the end and is
      counted: see ``overflows``.
    - Inputs: ``input_bits`` bits in units of max |x| / largest integer, so ``x`` [N, ...] has to span all inputs; one
      is the sign where x has any. An encoder's spikes, and whole numbers that fit, are taken as they are.
    - Averages become sums, and their divisor part of the next weights. Outputs are those of ``snn``, rounded.

    Args:
        snn: the converted network.
        x: inputs [N, ...] that span the range of all inputs.
        weight_bits: of weights, sign included.
        state_bits: of membrane potentials, sign included.
        input_bits: of inputs, sign included where there is one.
        threshold_bits: the threshold is 2 to this; by default half of ``state_bits``, two thirds for even weights.
        even_weights: weights are even and share one power of two in a layer; simulate with ``delay_per_layer=1`` for
            what Loihi 2 computes.
        overflow: "refuse" raises where a potential leaves its width, "saturate" stops and counts it.

    Returns:
        A network of the same framework; ``.conversion.widths`` holds the numbers of bits.

    Raises:
        UnsupportedError: with every module that has no integer form.
        ValueError: for widths out of range.
    """
    require_network(snn)
    require(snn.conversion.folded, "integers() needs thresholds within the weights; convert with fold=True.")
    require(snn.conversion.widths is None, "snn is in integers already; pass the network from which they were made.")
    require(overflow in ("refuse", "saturate"), f'overflow={overflow!r}: use "refuse" or "saturate".')
    for name, bits in (("weight", weight_bits), ("state", state_bits), ("input", input_bits)):
        whole = isinstance(bits, int) and not isinstance(bits, bool)
        require(whole and 2 <= bits <= MOST[name], f"{name}_bits={bits!r}: a width is 2 to {MOST[name]} bits.")
    require(isinstance(even_weights, bool), f"even_weights={even_weights!r}: use True or False.")
    if threshold_bits is None and even_weights:
        threshold_bits = state_bits * 2 // 3
    least = 7 if even_weights else 1
    fits = threshold_bits is None or (isinstance(threshold_bits, int) and least <= threshold_bits < state_bits - 1)
    require(
        fits,
        f"threshold_bits={threshold_bits!r}: a threshold in {state_bits} bits is 2 to a number from {least} to "
        f"{state_bits - 2}.",
    )
    like = next(p for p in (*snn.parameters(), *snn.buffers()) if p.is_floating_point())
    require(like.dtype in EXACT, f"snn is in {like.dtype}, which rounds integers; pass snn.float().", TypeError)
    require(
        state_bits <= EXACT[like.dtype] + 1,
        f"state_bits={state_bits}: {like.dtype} holds 24 bits exactly; pass snn.double() and inputs in float64.",
    )
    inputs = x if isinstance(x, tuple) else (x,)
    check_inputs(inputs, snn, "x")
    widths = Widths(weight_bits, state_bits, input_bits, overflow == "saturate", threshold_bits, even_weights)
    body = copy.deepcopy(snn).body
    with torch.no_grad():
        _Rewrite(body, inputs, snn.conversion.recipe.encoder.family, widths, like).apply()
    channels_last(body)
    new = get_backend(snn.record.backend).root(SpikingNetwork)(body, replace(snn.record, widths=widths)).eval()
    reset(new)
    return new  # type: ignore[return-value]


class _Rewrite:
    """One walk over the graph, from inputs to outputs, that finds what each tensor can hold; then the changes."""

    def __init__(
        self, body: GraphModule, inputs: tuple[Any, ...], encoded: Family, widths: Widths, like: Tensor
    ) -> None:
        self.body, self.encoded, self.widths, self.like = body, encoded, widths, like
        propagate(body, (*inputs, Steps(1)))
        data = [node for node in body.graph.nodes if graph.info(node).is_data and node.op != "output"]
        self.contexts = {node: context_of(body, node) for node in data}
        self.inputs = dict(zip(graph.inputs_of(body), inputs, strict=False))
        self.grids: dict[Node, Any] = {}
        self.readers: dict[Node, IntegerInput] = {}
        self.modules: dict[Node, nn.Module] = {}
        self.constants: dict[Node, Constants] = {}
        self.scales: dict[Node, tuple[Grid, ChannelScale]] = {}
        self.scaled: list[tuple[Node, Node]] = []  # edges with a scale

    def apply(self) -> None:
        """Rewrite the body in place; raise UnsupportedError with all that has no integer form."""
        problems: list[Problem] = []
        for node, context in self.contexts.items():
            if any(source not in self.grids for source in context.inputs):
                continue  # behind a problem
            try:
                self.grids[node] = self.read(context) if node.op == "placeholder" else self.visit(context)
            except UnsupportedError as error:
                problems += error.problems
        if problems:
            raise UnsupportedError("No integers: " + "; ".join(map(str, problems)), tuple(problems))
        output = graph.output_of(self.body)
        for source in output.all_input_nodes:
            self.whole(source, output)
        self.install()

    def read(self, context: NodeContext) -> Grid:
        """Read an input as integers."""
        x, key = self.inputs[context.node], graph.key_of(context.node)
        if not x.is_floating_point():
            raise refused(context, f"is of {x.dtype}.", "Give inputs in floating point.")
        signed, largest = bool((x < 0).any()), float(x.abs().amax())
        high = 2 ** (self.widths.input - signed) - 1
        unit = 1.0 if largest <= high and bool((x == x.round()).all()) else largest / high
        if self.encoded in (Family.BINARY, Family.SIGNED):
            signed, high, unit = self.encoded is Family.SIGNED, 1, 1.0
        step = torch.tensor(unit, dtype=x.dtype, device=x.device)
        self.readers[context.node] = IntegerInput(key, step, -high if signed else 0, high, self.widths.saturate)
        one = ones(context.out_shape)
        return Grid(0 * one, high * one, float(step))

    def visit(self, context: NodeContext) -> Any:
        """Return what the output of a node can hold, and note the module to put in its place."""
        operator = operator_of(self.body, context.node)
        passes = len(context.inputs) == 1 and isinstance(operator, (Movement, Element, Elementwise, LinearMap))
        absorbs = passes or isinstance(operator, (Synapse, Multiple, Offset))
        grids = [self.grids[source] if absorbs else self.whole(source, context.node) for source in context.inputs]
        refusal = operator.not_integer(context) if isinstance(operator, Operator) else None
        if refusal is not None:
            raise refused(context, *refusal)
        output, module = integer_form(operator, context, grids, self.widths)
        if isinstance(module, Constants):
            self.constants[context.node] = module
        elif module is not None:
            self.modules[context.node] = module.to(self.like)
        most = min(EXACT[self.like.dtype], ACCUMULATOR)
        for grid in output if isinstance(output, tuple) else (output,):
            if grid.bits > most:
                raise refused(
                    context,
                    f"can reach {grid.bits:.1f} bits, and {most} and a sign are there.",
                    "Use fewer bits, or snn.double() for up to 31, or convert(relay=True) for spikes into all weights.",
                )
        return output

    def whole(self, source: Node, user: Node) -> Any:
        """Return what ``source`` holds as ``user`` sees it, in unit 1: with a scale between where it has another."""
        grid = self.grids[source]
        if isinstance(grid, tuple) or grid.unit == 1:
            return grid
        if source not in self.scales:
            self.scales[source] = scaled(torch.ones_like(grid.bound), grid, self.widths)
        self.scaled.append((source, user))
        return self.scales[source][0]

    def install(self) -> None:
        """Change the graph."""
        new: dict[Node, Node] = {}
        for node in self.contexts:
            if node in self.modules and node.op == "call_module":
                self.body.set_submodule(str(node.target), self.modules[node])
            elif node in self.modules:
                inputs = tuple(new.get(source, source) for source in self.contexts[node].inputs)
                new[node] = graph.replace_call(self.body, node, self.modules[node], inputs, node.name)
            elif node in self.constants:
                self.keep(node, self.constants[node])
            elif node.op != "call_module" and node.target in MEANS:
                node.target = "sum" if isinstance(node.target, str) else torch.sum
        scales = {source: self.insert(new.get(source, source), module) for source, (_, module) in self.scales.items()}
        for source, user in self.scaled:
            new.get(user, user).replace_input_with(new.get(source, source), scales[source])
        for node, reader in self.readers.items():
            graph.insert_after(self.body, node, reader, f"{node.name}_integers")
        graph.refresh(self.body)

    def keep(self, node: Node, constants: Constants) -> None:
        """Let ``node`` read its constants in integers."""
        for source, (value, exponent) in constants.values.items():
            name = graph.rename_free(self.body, f"{node.name}_weight")
            self.body.register_parameter(name, nn.Parameter(value.to(self.like), requires_grad=False))
            self.body.register_buffer(f"{name}_exponent", exponent.to(self.like))
            with self.body.graph.inserting_before(node):
                new = self.body.graph.get_attr(name)
            graph.carry(source, new)
            node.replace_input_with(source, new)

    def insert(self, source: Node, module: ChannelScale) -> Node:
        """Return a new node that scales ``source``."""
        name = graph.add_module(self.body, f"{source.name}_scale", module.to(self.like))
        with self.body.graph.inserting_after(source):
            node = self.body.graph.call_module(name, (source,))
        graph.carry(source, node, key=f"{graph.key_of(source)} scale")
        return node
