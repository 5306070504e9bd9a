"""Replace activations, pools and functions that are not homogeneous by modules that live in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from conversion_ext import graph
from conversion_ext.backends.base import Backend
from conversion_ext.errors import UnsupportedError
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.time import ExpandTime, Function
from conversion_ext.neurons import Neuron
from conversion_ext.nn.differential import Differential
from conversion_ext.nn.matrix_product import MatrixProduct
from conversion_ext.nn.softmax import SpikingSoftmax
from conversion_ext.nn.stateful import Stateful
from conversion_ext.operators.activations import SignedRelay
from conversion_ext.operators.base import Activation, Operator, operator_of
from conversion_ext.operators.sites import Site, SiteKind
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.types import Granularity, PerLayer

__all__ = ["assemble"]


def assemble(
    model: GraphModule,
    sites: Sequence[Site],
    thresholds: Mapping[str, Tensor],
    recipe: Recipe,
    backend: Backend,
    generator: torch.Generator,
) -> None:
    """Make ``model`` spike, in place: its last input becomes ``steps``, and every site a :class:`SpikingSite`.

    What is linear in the input and depends on no spike does not depend on time under constant current: it stays as
    it is and runs once on [N, ...]; where such a value meets time-varying ones it is repeated. Pools and functions
    that are not homogeneous always live in time, since an input may be a sequence of frames.
    """
    builder = _Builder(model, {site.key: site for site in sites}, thresholds, recipe, backend, generator)
    for node in list(model.graph.nodes):
        builder.visit(node)
    graph.refresh(model)


class _Builder:
    def __init__(
        self,
        model: GraphModule,
        sites: Mapping[str, Site],
        thresholds: Mapping[str, Tensor],
        recipe: Recipe,
        backend: Backend,
        generator: torch.Generator,
    ) -> None:
        self.model, self.sites, self.thresholds = model, sites, thresholds
        self.recipe, self.backend, self.generator = recipe, backend, generator
        self.varying: set[Node] = set()  # what changes from step to step
        self.repeated: dict[Node, Node] = {}
        with model.graph.inserting_after(graph.inputs_of(model)[-1]):
            self.steps = model.graph.placeholder("steps")

    def visit(self, node: Node) -> None:
        if node.op in ("placeholder", "get_attr"):
            return
        if node.op == "output":
            self.repeat_static(node)
            return
        operator = operator_of(self.model, node)
        if not isinstance(operator, Operator):
            raise UnsupportedError(str(operator), (operator,))
        site = self.sites.get(graph.key_of(node))
        varies = any(n in self.varying for n in node.all_input_nodes)
        if isinstance(operator, Activation) and site is not None and site.kind in (SiteKind.RELU, SiteKind.RELAY):
            self.place(node, site, self.recipe.neuron_of(site), node.args[0])
        elif isinstance(operator, Activation) and site is not None:
            relays = isinstance(graph.module_of(self.model, node), SignedRelay)
            source = node.args[0] if relays else self.differential(node)
            self.place(node, site, self.recipe.signed_encoder, source)
        elif isinstance(operator, Activation):
            self.varying.add(self.differential(node, replace=True))
        elif (form := operator.spiking_form(graph.module_of(self.model, node), self.recipe)) is not None:
            self.live(node, form)
        elif varies:
            self.repeat_static(node)
            self.varying.add(node)

    def place(self, node: Node, site: Site, spec: Neuron, source: Any) -> None:
        """Put a spiking site behind ``source`` in the place of ``node``."""
        threshold = self.thresholds[site.key]
        granularity: Granularity = self.recipe.normalizer.granularity if threshold.dim() else PerLayer()
        copies = self.recipe.copies_of(site)
        module = SpikingSite(site.key, spec, self.backend, threshold, granularity, source not in self.varying, copies)
        new = graph.replace_call(self.model, node, module, (source, self.steps), site.target)
        graph.note(new, key=site.key)
        self.varying.add(new)

    def differential(self, node: Node, replace: bool = False) -> Node:
        """Return a node that computes ``node`` of its mean inputs and emits differences."""
        function, inputs = self.as_module(node)
        softmax = isinstance(function, (nn.Softmax, nn.LogSoftmax)) and all(u.op == "output" for u in node.users)
        if softmax and self.recipe.softmax != "membrane" and isinstance(function, nn.Softmax):
            module: Stateful = SpikingSoftmax(function.dim or -1, self.recipe.softmax, generator=self.generator)
        elif getattr(operator_of(self.model, node), "bilinear", False):
            module = MatrixProduct(function)
        else:
            module = Differential(function, inputs=len(inputs))
        module.static_inputs = tuple(n not in self.varying for n in inputs)
        args = (*inputs, self.steps)
        if replace:
            return graph.replace_call(
                self.model, node, module, args, str(node.target) if node.op == "call_module" else None
            )
        target = graph.add_module(self.model, f"{node.name}_function", module)
        with self.model.graph.inserting_before(node):
            new = self.model.graph.call_module(target, args)
        graph.carry(node, new)
        self.varying.add(new)
        return new

    def as_module(self, node: Node) -> tuple[nn.Module, list[Node]]:
        """Return what ``node`` calls as a module of its data inputs, and those inputs."""
        data = [n for n in node.all_input_nodes if graph.info(n).is_data]
        module = graph.module_of(self.model, node)
        if module is not None and node.args == tuple(data) and not node.kwargs:
            return module, data
        template, keywords = map_arg((node.args, dict(node.kwargs)), lambda n: self.bind(n, data))
        return Function(node.target if module is None else module, template, keywords), data

    def bind(self, node: Node, data: list[Node]) -> Any:
        """Return what stands for an argument node in a bound function: a slot, or the constant itself."""
        if node in data:
            return Function.Slot(data.index(node))
        assert node.op == "get_attr", f"check() lets {graph.key_of(node)} pass"
        return graph.attribute_of(self.model, node)

    def live(self, node: Node, module: Stateful) -> None:
        """Replace a homogeneous function of one tensor by its spiking form."""
        (source,) = node.all_input_nodes
        module.static_inputs = (source not in self.varying,)
        name = str(node.target) if node.op == "call_module" else None
        self.varying.add(graph.replace_call(self.model, node, module, (source, self.steps), name))

    def repeat_static(self, node: Node) -> None:
        """Repeat the inputs of ``node`` that do not depend on time where they meet ones that do."""
        for source in node.all_input_nodes:
            is_data = source.op != "get_attr" and graph.info(source).is_tensor
            if source in self.varying or not is_data or source is self.steps:
                continue
            if source not in self.repeated:
                name = graph.add_module(self.model, f"{source.name}_in_time", ExpandTime())
                with self.model.graph.inserting_before(node):
                    new = self.model.graph.call_module(name, (source, self.steps))
                graph.carry(source, new)
                self.repeated[source] = new
            node.replace_input_with(source, self.repeated[source])
