"""The copy of a converted network that is trained, and the way of what it learned back into a converted network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conversion_ext import graph
from conversion_ext.analysis.scores import main_output
from conversion_ext.data.distributed import added, processes
from conversion_ext.errors import require
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.spiking_network import SpikingNetwork, unfold_time
from conversion_ext.network.state import NetworkState, reset
from conversion_ext.neurons import Heaviside
from conversion_ext.training.batch_norm import Normalized, normalizable
from conversion_ext.training.losses import Loss
from conversion_ext.types import Steps

__all__ = ["LEARN", "Student", "check_trainable", "in_spikes", "write_learned"]

LEARN = ("weights", "thresholds", "gains", "potentials", "neurons")
BUFFERS = {"thresholds": "threshold", "gains": "gain", "potentials": "v_init"}  # of a site
SMALLEST = 0.01  # of what a threshold starts from: a negative one would turn its neurons around


class Student(nn.Module):
    """A copy of ``snn`` whose parameters are what is learned.

    ``learn`` names kinds of them: "weights" (also biases; those frozen in ``snn`` stay so), "thresholds" and
    "potentials" (the initial ones) of all sites, "gains" (graded spikes: what a spike is worth beside the threshold),
    "neurons" (what neurons themselves have, as a leak).
    """

    def __init__(
        self,
        snn: SpikingNetwork,
        learn: Sequence[str],
        surrogate: str | Heaviside | None,
        detach_reset: bool,
        watch: bool,
    ) -> None:
        super().__init__()
        self.snn = copy.deepcopy(snn)
        self.watch = watch
        self.seen: dict[str, Tensor] = {}
        sites = self.snn.sites()
        own = {id(p): p for site in sites.values() for p in site.neuron.parameters()}
        for parameter in self.snn.parameters():
            kind = "neurons" if id(parameter) in own else "weights"
            parameter.requires_grad_(parameter.requires_grad and kind in learn)
        for site in sites.values():
            site.neuron.train()  # nodes of SpikingJelly 0.0.0.0.14 have no gradient in evaluation
            site.backend.set_surrogate(site.neuron, surrogate, detach_reset)
            for name in [BUFFERS[kind] for kind in learn if kind in BUFFERS]:
                value = getattr(site, name)
                delattr(site, name)
                site.register_parameter(name, nn.Parameter(value.clone()))
            if watch:
                site.register_forward_hook(self._see)
        self.floors = {site.key: SMALLEST * site.threshold.detach().clone() for site in sites.values()}

    def normalize(self, inputs: tuple[Any, ...], steps: Steps) -> None:
        """Put BatchNorm behind the layers that learn; its start is estimated from a batch of inputs."""
        handles = []
        for path in list(normalizable(self.snn.body)):
            owner, _, name = path.rpartition(".")
            module = Normalized(self.snn.body.get_submodule(path))
            setattr(self.snn.body.get_submodule(owner), name, module)
            handles.append(module.layer.register_forward_hook(module.observe))
        with torch.no_grad():
            self._run(inputs, steps)
        for handle in handles:
            handle.remove()
        reset(self.snn)

    def state(self) -> dict[str, Tensor]:
        """Return a copy of all that changes in training, by its name in the copy that is trained."""
        kept = {name: p for name, p in self.snn.named_parameters() if p.requires_grad}
        for path, module in self.snn.named_modules():
            if isinstance(module, Normalized):
                kept |= {f"{path}.{name}": buffer for name, buffer in module.named_buffers(recurse=False)}
        return {name: value.detach().clone() for name, value in kept.items()}

    def learned(self) -> dict[str, Tensor]:
        """Return a copy of every value that is learned, by its name in the converted network."""
        weights, normalized = {}, {}
        for path, module in self.snn.named_modules():
            if isinstance(module, Normalized):
                normalized |= {f"{path}.{name}": value for name, value in module.folded().items()}
            elif not isinstance(self.snn.get_submodule(path.rpartition(".")[0]), Normalized):
                own = module.named_parameters(path, recurse=False)
                weights |= {name: p.detach().clone() for name, p in own if p.requires_grad}
        return weights | normalized

    def agree(self) -> None:
        """Average the statistics of BatchNorm over all processes, each of which saw batches of its own."""
        for module in self.snn.modules():
            if isinstance(module, Normalized):
                for statistic in module.buffers(recurse=False):
                    added(statistic).div_(processes())

    def constrain(self) -> None:
        """Keep thresholds positive."""
        with torch.no_grad():
            for key, site in self.snn.sites().items():
                if site.threshold.requires_grad:
                    site.threshold.clamp_(min=self.floors[key].to(site.threshold.device))

    def forward(
        self, inputs: tuple[Any, ...], steps: Steps, recompute: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the main outputs [T, N, C] and, where ``watch``, {site: spikes per step [N, ...]}."""
        if recompute is None or recompute >= steps.T:
            outputs, rates = self._run(inputs, steps)
            return self._weighed(outputs), rates
        clocked = any(site.clock is not None for site in self.snn.sites().values())
        require(
            not clocked, "recompute= cuts a run in parts, and this network looks ahead over all of it; leave it out."
        )
        parts, sums = list[Tensor](), dict[str, Tensor]()
        for first in range(0, steps.T, recompute):
            part = steps._replace(T=min(recompute, steps.T - first))
            given = inputs if steps.constant else tuple(_cut(v, steps.T, first, part.T) for v in inputs)
            output, rates = checkpoint(
                self._resume, NetworkState(self.snn).snapshot(), given, part, use_reentrant=False
            )
            parts.append(output)
            sums = {key: part.T * rate + sums.get(key, 0.0) for key, rate in rates.items()}
        return self._weighed(torch.cat(parts)), {key: value / steps.T for key, value in sums.items()}

    def _weighed(self, outputs: Tensor) -> Tensor:
        """Return outputs [T, N, ...] whose mean over the steps is what the network's readout makes of all of them."""
        weights = getattr(self.snn.conversion.recipe.readout, "weights", ())
        if len(weights) != len(outputs):
            return outputs
        shares = outputs.new_tensor(weights) * (len(weights) / sum(weights))
        return outputs * shares.view(-1, *[1] * (outputs.dim() - 1))

    def _resume(self, before: Any, inputs: tuple[Any, ...], steps: Steps) -> tuple[Any, dict[str, Tensor]]:
        NetworkState(self.snn).restore(before)  # once more in the backward pass, when the state is another
        return self._run(inputs, steps)

    def _run(self, inputs: tuple[Any, ...], steps: Steps) -> tuple[Any, dict[str, Tensor]]:
        self.seen = {}
        outputs, _ = main_output(unfold_time(self.snn.run(inputs, steps), steps.T))
        rates = {key: emitted.unflatten(0, (steps.T, -1)).mean(0) for key, emitted in self.seen.items()}
        self.seen = {}
        return outputs, rates

    def _see(self, site: nn.Module, args: Any, emitted: Tensor) -> None:
        assert isinstance(site, SpikingSite)
        self.seen[site.key] = emitted / site.amplitude(emitted.dim()) if site.scaled else emitted


def _cut(value: Any, T: int, first: int, count: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.unflatten(0, (T, -1))[first : first + count].flatten(0, 1)


def check_trainable(snn: SpikingNetwork, learn: Sequence[str]) -> None:
    """Raise ValueError unless ``snn`` can be trained and has what is to be learned."""
    require(not isinstance(learn, str), f"learn={learn!r}: give a tuple, learn=({learn!r},).")
    unknown = [kind for kind in learn if kind not in LEARN]
    require(bool(learn) and not unknown, f"learn={tuple(learn)!r}: name some of {', '.join(LEARN)}.")
    require(snn.conversion.widths is None, "snn is in integers; fine-tune the network that they are from.")
    pacing = next((site.stepping for site in snn.sites().values() if not site.stepping.plain), None)
    require(
        pacing is None,
        f"The tuner behind {type(pacing).__name__} acts while simulating, which has no gradient; convert with a recipe "
        "without it and fine-tune that.",
    )
    require(
        not {"thresholds", "gains"} & set(learn) or not snn.conversion.folded,
        f"learn={tuple(learn)!r}: thresholds and gains are gone, they are folded into the weights; use fold=False.",
    )
    require(
        "neurons" not in learn or any(True for site in snn.sites().values() for _ in site.neuron.parameters()),
        'learn="neurons": no neuron of this network has parameters; convert with one that has.',
    )


def in_spikes(loss: Loss, snn: SpikingNetwork) -> Callable[[Tensor, Tensor], Tensor]:
    """Return ``loss`` as a function of what ``snn`` emits: spikes of its output neurons times what they are worth."""
    require(
        snn.conversion.recipe.readout.spiking,
        f"{loss} reads spikes, but this network has no output neurons; convert with a recipe whose readout is "
        "SpikeCount() or FirstSpike().",
    )
    node = graph.output_of(snn.body).all_input_nodes[0]
    while not isinstance(site := graph.module_of(snn.body, node), SpikingSite):  # scales of a folded network follow
        (node,) = node.all_input_nodes
    return lambda outputs, target: loss(outputs / site.amplitude(outputs.dim() - 1), target)


def write_learned(snn: SpikingNetwork, learned: Mapping[str, Tensor]) -> None:
    """Write learned values into a converted network, in place."""
    values = dict(snn.named_parameters()) | dict(snn.named_buffers())
    with torch.no_grad():
        for name, value in learned.items():
            values[name].copy_(value)
