"""The laws of a converted network as functions, each against an oracle that shares no code with what it checks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node
from torch.utils._pytree import tree_flatten

import conversion_ext as cx
from conversion_ext import graph
from conversion_ext.capture.preparation import prepare
from conversion_ext.network.site import SpikingSite
from conversion_ext.nn.stateful import Stateful
from conversion_ext.types import Family, Steps

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTS = (*CONVOLUTIONS, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Trace:
    """Inputs and outputs of every stateful module of a body, step by step."""

    def __init__(self, snn: Any) -> None:
        self.inputs: dict[str, list[tuple[Tensor, ...]]] = {}
        self.outputs: dict[str, list[Tensor]] = {}
        self.modules = {n: m for n, m in snn.body.named_modules() if isinstance(m, (SpikingSite, Stateful))}
        self.handles = [m.register_forward_hook(self._hook(n)) for n, m in self.modules.items()]

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            tensors = tuple(a.detach().clone() for a in args if not isinstance(a, Steps))
            self.inputs.setdefault(name, []).append(tensors)
            self.outputs.setdefault(name, []).append(output.detach().clone())

        return hook

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def assert_sites_exact(snn: Any, inputs: tuple[Any, ...], T: int, tolerance: float = 1e-10, block: int = 1) -> None:
    """Law 9a: at every site and every t (end of a block) neuron, pool or operator conserve what they were given."""
    cx.reset(snn)
    trace = Trace(snn)
    try:
        with torch.no_grad():
            for t in range(1, T // block + 1):
                snn.run(inputs, Steps(1, constant=True, block=block))
                for name, module in trace.modules.items():
                    if name not in trace.inputs:
                        continue
                    _conserves(name, module, trace.inputs[name], trace.outputs[name], t, tolerance, block)
    finally:
        trace.close()
        cx.reset(snn)


def _conserves(
    name: str, module: Any, inputs: list[Any], outputs: list[Tensor], t: int, tolerance: float, block: int
) -> None:
    emitted = torch.stack(outputs).sum(0)
    given = [torch.stack(series).sum(0) for series in zip(*inputs, strict=True)]
    if isinstance(module, SpikingSite):
        scale = module.view(emitted.dim()) if module.scaled else 1.0
        v = module.backend.membrane_potential(module.neuron)
        assert v is not None
        emitted = emitted / module.gain if module.scaled else emitted
        expected, found = block * (given[0] - emitted), scale * (v - module.v_init)
    elif isinstance(module, cx.nn.SpikingMaxPool):
        expected, found = module._pool(given[0]), emitted
    elif isinstance(module, cx.nn.SpikingMagnitude):
        expected, found = given[0].abs(), emitted
    elif isinstance(module, cx.nn.Differential):
        expected, found = t * module.function(*(g / t for g in given)), emitted
    else:
        return
    error = (expected - found).abs().max() / expected.abs().max().clamp(min=1.0)
    assert error <= tolerance, f"{name} at t={t}: {error:.2e}"


class Overridden(fx.Interpreter):
    """The ANN's own graph with the outputs of its sites replaced by what the spiking sites emitted on average."""

    def __init__(self, model: fx.GraphModule, rates: dict[str, Tensor]) -> None:
        super().__init__(model)
        self.rates = rates
        self.currents: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        key = graph.key_of(n)
        if n.op == "call_module" and key in self.rates:
            self.currents[key] = self.env[n.args[0]] if isinstance(n.args[0], Node) else n.args[0]
            return self.rates[key]
        return super().run_node(n)


def assert_is_ann_of_rates(
    ann: nn.Module, snn: Any, inputs: tuple[Any, ...], T: int, tolerance: float = 1e-9, block: int = 1
) -> None:
    """Law 9a end to end: with every activation replaced by its rate, the ANN's own graph gives the SNN's output.

    Currents at every site and all outputs agree, whatever was folded, scaled, pooled or moved in between.
    """
    cx.reset(snn)
    trace = Trace(snn)
    with torch.no_grad():
        outputs = [snn.run(inputs, Steps(1, constant=True, block=block)) for _ in range(T // block)]
    trace.close()
    rates, currents = {}, {}
    for name, module in trace.modules.items():
        if isinstance(module, SpikingSite):
            emitted = torch.stack(trace.outputs[name]).mean(0)
            scale, amplitude = (
                (1.0, 1.0) if module.scaled else (f(emitted.dim()) for f in (module.view, module.amplitude))
            )
            rates[module.key] = emitted * amplitude
            # static inputs are the same at each step, so their mean is the value itself
            currents[module.key] = torch.stack([i[0] for i in trace.inputs[name]]).mean(0) * scale
    relu_sites = {k for k, m in snn.sites().items() if not isinstance(m.spec, cx.neurons.SignedEncoder)}
    oracle = Overridden(prepare(ann, inputs, (), ()), rates)
    with torch.no_grad():
        expected, _ = tree_flatten(oracle.run(*inputs))
    for key in relu_sites:
        _close(currents[key], oracle.currents[key], tolerance, f"current of {key}")
    found = [torch.stack(series).mean(0) for series in zip(*[tree_flatten(o)[0] for o in outputs], strict=True)]
    assert len(found) == len(expected)
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        _close(a, b, tolerance, f"output {index}")
    cx.reset(snn)


class Rounded(fx.Interpreter):
    """The ANN's own graph with activations rounded by the closed form of T steps of constant current."""

    def __init__(self, model: fx.GraphModule, snn: Any, T: int) -> None:
        super().__init__(model)
        self.sites, self.T = snn.sites(), T

    def run_node(self, n: Node) -> Any:
        value: Any = super().run_node(n)
        site = self.sites.get(graph.key_of(n))
        if n.op != "call_module" or site is None:
            return value
        threshold = site.view(value.dim())
        if isinstance(site.spec, cx.neurons.SignedEncoder):
            count = (self.T * value / threshold).round().clamp(-self.T, self.T)
        else:  # the current, not the activation: beside a tie they round alike, and a ReLU's zeros are exact
            current: Any = self.env[n.args[0]] if isinstance(n.args[0], Node) else n.args[0]
            count = torch.floor(self.T * current / threshold + 0.5).clamp(0, self.T)
        return threshold * count / self.T


def assert_table_is_what_weights_see(snn: Any, inputs: Any, T: int) -> None:
    """Law 4c: a row for every weight layer called, and where it promises spikes hooks see those values only."""
    promised = {row.key: row.sees for row in snn.conversion.table() if row.kind == "synapse"}
    seen: dict[str, set[float]] = {}
    handles, layers = [], 0
    for node in snn.body.graph.nodes:
        module = snn.body.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, WEIGHTS):
            layers += 1
            key = graph.key_of(node)
            hook = lambda m, args, key=key: seen.setdefault(key, set()).update(args[0].unique().tolist())  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook))
    cx.simulate(snn, inputs, T)
    for handle in handles:
        handle.remove()
    assert seen.keys() == promised.keys()
    assert len(seen) == layers > 0
    for key, sees in promised.items():
        allowed = spikes_of(snn, sees)
        assert allowed is None or seen[key] <= allowed, f"{key} sees {len(seen[key])} values, not {sees}"


def spikes_of(snn: Any, family: Family) -> set[float] | None:
    """Return the values that spikes of ``family`` take in this network, None for values that are no spikes."""
    if family is Family.MULTI_LEVEL:
        neuron = snn.conversion.recipe.neuron
        return {float(s) for s in range(-neuron.max_spikes if neuron.signed else 0, neuron.max_spikes + 1)}
    return {Family.BINARY: {0.0, 1.0}, Family.SIGNED: {-1.0, 0.0, 1.0}}.get(family)


def _close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert found.shape == expected.shape, f"{what}: {list(found.shape)} against {list(expected.shape)}"
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
    assert error <= tolerance, f"{what}: relative error {error:.2e}"


def spikes(snn: Any, x: Any, T: int, **options: Any) -> dict[str, Tensor]:
    """Return {site: spikes [T, N, ...]} of a run."""
    return cx.simulate(snn, x, T, record=("spikes",), **options).recorded["spikes"]


def first_difference_is_a_tie(a: Any, b: Any, x: Tensor, T: int) -> None:
    """Law 4b: where two networks first differ (by t, then by site), the potential stands within 1e-9 of a threshold."""
    one, two = spikes(a, x, T), spikes(b, x, T)
    for t in range(T):
        for key in one:
            differ = one[key][t] != two[key][t]
            if differ.any():
                v = cx.simulate(a, x, t + 1, record=("potential",)).recorded["potential"][key][t]
                before_reset = (v + one[key][t])[differ]
                nearest = before_reset.round().clamp(1, a.conversion.recipe.neuron.levels)
                assert ((before_reset - nearest).abs() < 1e-9).all(), f"{key} at t={t + 1} differs away from a tie"
                return
