"""What a method demands of the network beyond what can be converted at all."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import GraphModule, Node

from conversion_ext import graph
from conversion_ext.errors import Problem
from conversion_ext.graph import layers
from conversion_ext.operators.base import Activation, operator_of
from conversion_ext.operators.magnitude import Magnitude
from conversion_ext.operators.sites import SiteKind

__all__ = ["Demand", "MagnitudeOfInput", "NoBias", "NoMaxPool", "NoSignedSites", "OnlyReLU"]


@dataclass(frozen=True)
class Demand:
    """Base of all demands: ``problems`` names every place of a prepared network that does not meet it."""

    def problems(self, model: GraphModule) -> list[Problem]:
        """Return what does not meet the demand."""
        raise TypeError(f"{type(self).__name__} must define problems().")


@dataclass(frozen=True)
class NoBias(Demand):
    """Weight layers have no bias, or one of zeros; the shift of a folded BatchNorm is a bias too."""

    def problems(self, model: GraphModule) -> list[Problem]:
        """Return the layers that have one."""
        called = graph.modules_called(model, *layers.WEIGHTS)
        return [
            _problem(
                node,
                "it has a bias (its own, or the shift of a BatchNorm), which this method does not know.",
                "Train with bias=False and without BatchNorm, or take a recipe that has biases, such as rueckauer2017.",
            )
            for node, layer in called
            if layer.bias is not None and bool(layer.bias.any())
        ]


@dataclass(frozen=True)
class OnlyReLU(Demand):
    """Every activation is a ReLU."""

    def problems(self, model: GraphModule) -> list[Problem]:
        """Return the activations that are something else."""
        problems = []
        for node in model.graph.nodes:
            operator = operator_of(model, node)
            if isinstance(operator, Activation) and (operator.kind is not SiteKind.RELU or operator.cap is not None):
                problems.append(_problem(node, "it is an activation other than ReLU.", "Train with ReLU in its place."))
        return problems


@dataclass(frozen=True)
class NoSignedSites(Demand):
    """No activation needs spikes of either sign, as a LeakyReLU does: spikes weighted in time have one sign."""

    def problems(self, model: GraphModule) -> list[Problem]:
        """Return the activations that need both."""
        reason = "its values have either sign, and encoders of those send rates, which cannot follow weighted spikes."
        remedy = "Train with ReLU in its place, or take a recipe of another family, such as default-lookahead."
        operators = ((node, operator_of(model, node)) for node in model.graph.nodes)
        signed = (node for node, m in operators if isinstance(m, Activation) and m.kind is SiteKind.SIGNED)
        return [_problem(node, reason, remedy) for node in signed]


@dataclass(frozen=True)
class NoMaxPool(Demand):
    """Pooling is average pooling."""

    def problems(self, model: GraphModule) -> list[Problem]:
        """Return the max-pools."""
        remedy = "Put average pooling in its place with conversion_ext.recipes.max_to_average(ann) and train anew."
        return [
            _problem(node, "it is a max-pool, and this method has linear subsampling only.", remedy)
            for node, _ in graph.modules_called(model, *layers.MAX_POOLS)
        ]


@dataclass(frozen=True)
class MagnitudeOfInput(Demand):
    """The network takes the magnitude of its input before anything else."""

    def problems(self, model: GraphModule) -> list[Problem]:
        """Return what sees the input itself."""
        seen = [user for node in graph.inputs_of(model) for user in node.users]
        remedy = "Put the magnitude before it with conversion_ext.recipes.adapt_cao2015(ann) and train anew."
        return [
            _problem(node, "it sees the input itself, and this method knows no spikes below 0.", remedy)
            for node in seen
            if not isinstance(operator_of(model, node), Magnitude)
        ]


def _problem(node: Node, reason: str, remedy: str) -> Problem:
    return Problem(graph.key_of(node), reason, remedy, graph.describe(node))
