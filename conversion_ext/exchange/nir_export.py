"""A converted network as a NIR graph."""

from __future__ import annotations

import json
from typing import Any

from torch.fx import Node

from conversion_ext import graph
from conversion_ext.errors import Problem, UnsupportedError, require
from conversion_ext.exchange import nir_rules
from conversion_ext.exchange.modules import Modules
from conversion_ext.exchange.nir_canvas import Canvas
from conversion_ext.exchange.outputs import spiking_output
from conversion_ext.exchange.readers import reader_of
from conversion_ext.exchange.tensors import Tensors
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.simulation.samples import require_network

__all__ = ["to_nir"]


def to_nir(snn: SpikingNetwork, *, reader: str | None = None, T: int | None = None) -> Any:
    """Return a folded network as a ``nir.NIRGraph``, which ``nir.write`` puts into an HDF5 file.

    NIR's IF neuron knows neither soft reset nor an initial potential nor a floor. They stand in its metadata, from
    which ``from_nir`` builds the same network, spike for spike. Other packages lose them; ``reader`` writes pools,
    resistances, thresholds, flatten axes and scales (as 1 x 1 convolutions) as each of them reads them, and nothing
    behind output neurons, whose spikes are counted. With ``T``
    biases also hold ``v_init / T``, after which the counts of T steps are right where the reset is soft, though not
    their times. A network of hard reset and ``v_init=0`` is exact in SpikingJelly, snnTorch and norse.

    Args:
        snn: What ``convert`` returned, folded: weight layers, sums, average pools, flattening, IF and LIF neurons.
        reader: "spikingjelly", "snntorch", "sinabs", "norse" or "spinnaker2"; None for ``from_nir``.
        T: The number of steps for which initial potentials go into the biases, where the reader loses them.

    Raises:
        UnsupportedError: With every place that NIR has no node for: max-pools, graded functions, concatenations, ...
        MissingError: The package nir is not installed.

    Reference: Pedersen et al., Nat. Commun. 2024 (NIR).
    """
    require_network(snn)
    require(
        T is None or (isinstance(T, int) and T >= 1), f"T={T!r}: the number of steps to write for is an integer >= 1."
    )
    require(snn.conversion.folded, "NIR's neurons have no scales; convert with fold=True.")
    require(
        snn.conversion.widths is None,
        "NIR has no rounding, so a network in integers is none of its graphs; export the one from which it was made, "
        "or hand over conversion_ext.integer.parameters(snn).",
    )
    if reader is not None and snn.conversion.recipe.readout.spiking:
        snn = spiking_output(snn)
    canvas = Canvas(snn.body, reader_of(reader), T)
    _draw(canvas)
    if canvas.reader.depth_first:
        _order(canvas)
    if canvas.problems:
        listed = "; ".join(map(str, canvas.problems))
        raise UnsupportedError(f"NIR has no form of this network: {listed}", tuple(canvas.problems))
    made = canvas.nir.NIRGraph(canvas.nodes, canvas.edges, metadata=_metadata(snn, canvas), type_check=False)
    if canvas.typed:
        made.infer_types()
        made.check_types()
    return made


def _draw(canvas: Canvas) -> None:
    """Write every node of the body, in order; what lies behind a problem is left out."""
    steps = graph.steps_of(canvas.body)
    for node in canvas.body.graph.nodes:
        sources = [source for source in node.all_input_nodes if source is not steps]
        if node is steps or any(source not in canvas.values for source in sources):
            continue
        if node.op == "placeholder":
            value = canvas.add(node, canvas.nir.Input({"input": canvas.shape(node)}), ())
        elif node.op == "output":
            value = _output(canvas, node)
        else:
            value = nir_rules.written(canvas, node)
        if value is not None:
            canvas.values[node] = value


def _output(canvas: Canvas, node: Node) -> Any:
    """Write the output, of which there is one."""
    if not isinstance(node.args[0], Node):
        canvas.problem(node, "it returns several values.", "Return one tensor.")
        return None
    (source,) = node.all_input_nodes
    return canvas.add(node, canvas.nir.Output({"output": canvas.shape(source)}), canvas.settled(source).sources)


def _order(canvas: Canvas) -> None:
    """Put the longest branch behind every node first, and note the nodes that a walk into the depth meets too early.

    ``nirtorch.load``, with which sinabs and norse read, runs a node at the first of its inputs that the walk arrives
    from: right for a sum of a branch and what the branch starts from, wrong for two branches with nodes of their own.
    """
    heights: dict[str, int] = {}
    for name in reversed(canvas.nodes):
        heights[name] = 1 + max((heights[b] for a, b in canvas.edges if a == name), default=0)
    canvas.edges.sort(key=lambda edge: -heights[edge[1]])
    done: set[str] = set()
    waiting = [name for name, node in canvas.nodes.items() if isinstance(node, canvas.nir.Input)]
    while waiting:
        name = waiting.pop()
        if name in done:
            continue
        done.add(name)
        late = [a for a, b in canvas.edges if b == name and a not in done]
        if late:
            key = canvas.nodes[name].metadata["key"]
            reason = f"this reader runs it before {', '.join(late)}, which it reads."
            remedy = "Read the graph by from_nir or in SpikingJelly, or join a branch with what it starts from only."
            canvas.problems.append(Problem(key, reason, remedy))
            return
        waiting += [b for a, b in reversed(canvas.edges) if a == name]


def _metadata(snn: SpikingNetwork, canvas: Canvas) -> dict[str, Any]:
    """Return what ``from_nir`` needs to decode as this network does."""
    if not canvas.reader.metadata:
        return {}
    recipe = Modules(Tensors()).values.write(snn.conversion.recipe)
    return {"conversion_ext": json.dumps({"recipe": recipe, "name": snn.record.recipe}), "dt": 1.0}
