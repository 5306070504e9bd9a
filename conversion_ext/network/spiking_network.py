"""The converted network: a module of its framework around a readable graph."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from conversion_ext import graph
from conversion_ext.backends.base import Backend, get_backend
from conversion_ext.data.inputs import tensors_of
from conversion_ext.errors import CalibrationError, StateError, require
from conversion_ext.exact import state_dtype
from conversion_ext.graph.values import map_tensors
from conversion_ext.network.lookahead import Clock
from conversion_ext.network.record import Record
from conversion_ext.network.scales import can_move, move_scales, scale_edges
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.state import reset
from conversion_ext.network.table import Conversion
from conversion_ext.nn.channel_scale import ChannelScale
from conversion_ext.nn.stateful import Memory, Stateful
from conversion_ext.readouts.mean_output import MeanOutput
from conversion_ext.types import Steps

__all__ = ["SpikesAndPotential", "SpikingNetwork", "fold_time", "hosted", "unfold_time"]


class SpikingNetwork(nn.Module):
    """A spiking network; ``snn(x)`` is the readout current of a step, in units of the ANN's output.

    In step mode "s" an input is one step, [N, ...]; in "m" it is a sequence [T, N, ...] and so is the output.
    State stays between calls until ``conversion_ext.reset(snn)`` (SpikingJelly: ``functional.reset_net``).
    ``body`` is the graph (``print(snn.body.graph)``), ``conversion`` what was done to make it.

    Where sites look ahead, a step is a tick of one clock, as on a chip: hold the input for
    ``conversion.latency_steps`` ticks (T and the lag of the output), and outputs are 0 but for the last T of them.
    """

    def __init__(self, body: GraphModule, record: Record) -> None:
        super().__init__()
        self.body = body
        self.record = record
        self._step_mode = "s"
        self._live = any(isinstance(module, Clock) for module in body.modules())

    @property
    def step_mode(self) -> str:
        """``"s"``: one step per call; ``"m"``: a whole sequence per call."""
        return self._step_mode

    @step_mode.setter
    def step_mode(self, value: str) -> None:
        require(value in ("s", "m"), f'step_mode is "s" (single step) or "m" (multi-step), got {value!r}.')
        self._step_mode = value

    @property
    def conversion(self) -> Conversion:
        """What was done to make this network: recipe, thresholds, table."""
        return Conversion(self.body, self.record)

    def forward(self, *inputs: Any) -> Any:
        """Advance by one step, or in step mode "m" by the length of the input sequence."""
        inputs = tensors_of(inputs)
        try:
            return self._advance(inputs)
        except StateError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise self.misfit(inputs, self.step_mode == "m", error) from error

    def _advance(self, inputs: tuple[Any, ...]) -> Any:
        if self.step_mode == "s":
            return self.run(inputs, Steps(1, live=self._live))
        T = inputs[0].shape[0]
        require(T > 0, 'The input sequence is empty; in step mode "m" an input is [T, N, ...] with T >= 1.')
        steps = Steps(T, live=self._live)
        return unfold_time(self.run(tuple(fold_time(value) for value in inputs), steps), T)

    def run(self, inputs: tuple[Any, ...], steps: Steps) -> Any:
        """Advance by ``steps.T`` steps or blocks, folded into the batch: inputs and outputs are [T*N, ...]."""
        return self.body(*inputs, steps)

    def misfit(self, inputs: tuple[Any, ...], sequence: bool, error: Exception) -> Exception:
        """Return what to raise for an error of a run: one sentence where shapes are not those of the conversion."""
        known = self.input_shapes()
        given = [list(v.shape[1:] if sequence else v.shape) for v in inputs if isinstance(v, Tensor)]
        same = len(known) == len(given)
        if same and all(k is None or k[1:] == g[1:] for k, g in zip(known, given, strict=True)):
            return error
        shapes = ", ".join("?" if shape is None else f"[N, {', '.join(map(str, shape[1:]))}]" for shape in known)
        inputs_given = f"The input {', '.join(map(str, given))}" if given else "An input without a tensor"
        return CalibrationError(f"{inputs_given} does not fit this network, which was converted for {shapes}.")

    def input_shapes(self) -> list[list[int] | None]:
        """Return the shape of each input at conversion, the batch first; None where it is not known."""
        *inputs, _ = (node for node in self.body.graph.nodes if node.op == "placeholder")
        known = (graph.info(node) for node in inputs)
        return [list(info.shape) if info.is_tensor else None for info in known]

    def sites(self) -> dict[str, SpikingSite]:
        """Return the spiking sites by key, in graph order."""
        return {module.key: module for _, module in graph.modules_called(self.body, SpikingSite)}

    def as_snntorch(self) -> nn.Module:
        """Return a copy for tools that expect snnTorch's ``spk, mem = net(x)``, such as NeuroBench's SNNTorchModel.

        Its neurons are snnTorch's, whatever the backend of this network. ``spk`` is the readout current of a step
        (spikes, where the readout reads spikes) and ``mem`` their sum since the last ``reset()``.
        """
        backend = get_backend("snntorch")
        return backend.root(SpikesAndPotential)(hosted(self, backend)).eval()

    def end_warm_up(self) -> None:
        """Let sites take from the warm-up what they need (see ``Stepping``), and start everything anew."""
        for site in self.sites().values():
            site.stepping.end_warm_up(site)
            site.restart()
        for module in self.modules():
            if isinstance(module, Stateful):
                module.reset()

    def __repr__(self) -> str:
        """Show layers and neurons in the order in which they are computed, functions and operators among them."""
        made = self.record
        lines = [f"{type(self).__name__}(recipe={made.recipe!r}, T={made.T}, backend={made.backend!r},"]
        for node in self.body.graph.nodes:
            module = graph.module_of(self.body, node)
            if isinstance(module, SpikingSite):
                lines.append(f"  ({module.key}): {module.described()}")
            elif module is not None:
                lines.append(f"  ({graph.key_of(node)}): {module!r}".replace("\n", "\n  "))
            elif node.op in ("call_function", "call_method") and graph.info(node).is_tensor:
                lines.append(f"  ({node.name}): {getattr(node.target, '__name__', node.target)}")
        return "\n".join([*lines, ")"])

    def get_extra_state(self) -> dict[str, Any]:
        """Return the conversion's record as plain data, so that a state dict keeps it."""
        neurons = [f"{site.spec} x {site.copies}" for site in self.sites().values()]
        weights = getattr(getattr(self.conversion.recipe, "readout", None), "weights", ())
        made = {"neurons": neurons, "output weights": list(weights), "scales": scale_edges(self.body)}
        return self.record.plain() | made

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Check that a loaded state dict belongs to a network converted in the same way."""
        own = self.get_extra_state()
        require(
            state["sites"] == own["sites"],
            f"The state dict belongs to a network with other sites ({len(state['sites'])} against "
            f"{len(own['sites'])}); load it into a conversion of the same model.",
        )
        for name, what in (("folded", "fold"), ("neurons", "neurons"), ("widths", "widths")):
            theirs, ours = (each.get(name, own[name]) for each in (state, own))
            if theirs != ours:
                several = isinstance(ours, list)
                pair = next(p for p in zip(theirs, ours, strict=True) if p[0] != p[1]) if several else (theirs, ours)
                raise ValueError(
                    f"The state dict belongs to a network converted with {what}={pair[0]}, and this one has "
                    f"{what}={pair[1]}; convert the model with the same recipe and options, or use "
                    "conversion_ext.save and load."
                )
        weights = tuple(state.get("output weights", own["output weights"]))
        if weights != tuple(own["output weights"]):  # which a tuner found on other data
            recipe = replace(self.conversion.recipe, readout=MeanOutput(weights=weights))
            self.record = replace(self.record, recipe_value=recipe)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the state dict of a network that was converted in the same way; nothing is changed where it was not.

        Raises:
            ValueError: where it belongs to another conversion.
        """
        extra = state_dict.get("_extra_state")
        if isinstance(extra, Mapping):
            self.set_extra_state(extra)
        own, scales = self.state_dict(), self._scales_of(state_dict)
        if scales is not None:  # other data left scales on other edges
            own = {name: v for name, v in own.items() if name not in _paths(scale_edges(self.body))}
            own |= {name: state_dict[name] for name in _paths(scales)}
        wrong = [name for name in own if name not in state_dict] + [name for name in state_dict if name not in own]
        # Thresholds and what tuners set may be one for a site or one for each channel.
        fixed = [
            name for name, value in own.items() if isinstance(value, Tensor) and not self._takes_other_shapes(name)
        ]
        wrong += [name for name in fixed if name in state_dict and state_dict[name].shape != own[name].shape]
        require(
            not (wrong and strict),
            f"The state dict does not fit this conversion: {', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''} "
            f"{'differs' if len(wrong) == 1 else 'differ'}; load one of the same model, recipe and options, or use "
            "conversion_ext.save and load.",
        )
        if scales is not None:
            move_scales(self.body, scales, {name: state_dict[f"body.{name}.scale"] for name in scales})
        return super().load_state_dict(state_dict, strict, assign)

    def _scales_of(self, state_dict: Mapping[str, Any]) -> dict[str, list[str]] | None:
        """Return where the network of ``state_dict`` has scales, if that is elsewhere and this graph has the places."""
        extra = state_dict.get("_extra_state")
        scales = extra.get("scales") if isinstance(extra, Mapping) else None
        if scales is None or scales == scale_edges(self.body) or not can_move(self.body, scales):
            return None
        return scales if all(isinstance(state_dict.get(name), Tensor) for name in _paths(scales)) else None

    def _takes_other_shapes(self, name: str) -> bool:
        module = dict(self.named_modules()).get(name.rpartition(".")[0])
        return module is None or isinstance(module, SpikingSite | ChannelScale)

    def __getstate__(self) -> dict[str, Any]:
        # Unpickling traces the body anew and forgets what its nodes are called and which of them are tensors.
        return {**self.__dict__, "nodes": [graph.info(node) for node in self.body.graph.nodes]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept = state.pop("nodes")
        super().__setstate__(state)
        for node, known in zip(self.body.graph.nodes, kept, strict=True):
            graph.note(node, **vars(known))

    def __deepcopy__(self, memo: dict[int, Any]) -> SpikingNetwork:
        # States are not leaves of autograd after a forward with gradients: copy them detached, then forget them.
        for module in self.modules():
            for value in vars(module).get("_memories", {}).values():  # those of SpikingJelly's stock nodes
                if isinstance(value, Tensor):
                    memo[id(value)] = value.detach().clone()
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__dict__ = {name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()}
        reset(new)
        return new


class SpikesAndPotential(nn.Module):
    """A converted network whose forward returns (spk, mem), one step per call; both [N, classes]."""

    def __init__(self, net: SpikingNetwork) -> None:
        super().__init__()
        self.net = net
        self.total = PotentialOfOutput()

    def forward(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """Advance by one step."""
        spikes = self.net(*inputs)
        require(
            isinstance(spikes, Tensor),
            "as_snntorch() is for networks with one output; call a network of several outputs itself.",
            TypeError,
        )
        return spikes, self.total(spikes)


class PotentialOfOutput(Memory):
    """The sum of what it was given since the last reset: a neuron that never fires."""

    state_names = ("potential",)
    potential: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Add x [N, ...] and return the sum."""
        wide = x.to(state_dtype(x.dtype))
        self.potential = wide if self.potential is None else self.potential + wide
        return self.potential


def hosted(snn: SpikingNetwork, backend: Backend) -> SpikingNetwork:
    """Return a copy of ``snn`` whose neurons are those of ``backend``, without state."""
    copied = copy.deepcopy(snn)
    for site in copied.sites().values():
        neuron = backend.neuron(site.spec).to(site.threshold.device)
        with torch.no_grad():
            for name in site.spec.learned:
                getattr(neuron, name).copy_(getattr(site.neuron, name))
        site.neuron, site.backend_name = neuron, backend.name
    new: Any = backend.root(SpikingNetwork)(copied.body, replace(snn.record, backend=backend.name))
    return new.train(snn.training)


def _paths(scales: Iterable[str]) -> list[str]:
    return [f"body.{name}.scale" for name in scales]


def fold_time(value: Any) -> Any:
    """Flatten [T, N, ...] to [T*N, ...]; leave what is not a tensor."""
    return value.flatten(0, 1) if isinstance(value, Tensor) else value


def unfold_time(value: Any, T: int) -> Any:
    """Unflatten [T*N, ...] to [T, N, ...] in every tensor of a nested output."""
    return map_tensors(value, lambda v: v.unflatten(0, (T, -1)))
