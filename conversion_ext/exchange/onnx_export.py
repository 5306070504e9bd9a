"""A converted network in ONNX: one step with its states as inputs and outputs, or the quantised ANN that it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional

from conversion_ext import graph
from conversion_ext.analysis.twins import twin
from conversion_ext.backends import get_backend
from conversion_ext.errors import Problem, UnsupportedError, optional_import, require
from conversion_ext.network.spiking_network import SpikingNetwork, hosted
from conversion_ext.network.state import NetworkState
from conversion_ext.nn.max_pool import SpikingMaxPool
from conversion_ext.nn.stateful import Stateful
from conversion_ext.simulation.samples import require_network
from conversion_ext.types import Steps

__all__ = ["Step", "to_onnx"]


def to_onnx(snn: SpikingNetwork, x: Tensor, path: str | Path, *, T: int | None = None) -> Path:
    """Write ``snn`` to an ONNX file and return its path; onnxruntime computes the same.

    Without ``T`` the file holds one step: inputs ``x`` and ``state_0``, ..., outputs ``y`` and ``next_0``, ...; the
    states before the first step are those of ``Step(snn).start(x)``, and ``x`` is a step of the encoder's. With ``T``
    it is the twin, an ANN whose activations have the ``T + 1`` levels of T steps, for chips without time.

    Args:
        snn: What ``convert`` returned, with one input and one output: for a step without pools or functions with state.
        x: An example of inputs [N, ...]; N is fixed in the file.
        path: The file.
        T: The number of steps of which the twin is written.

    Raises:
        UnsupportedError: The network has several inputs or outputs; or, with its modules, their state is more than that
            of neurons; or ONNX has no form of something in it.
        MissingError: The packages onnx and onnxscript are not installed.
    """
    require_network(snn)
    optional_import("onnxscript", "onnxscript", "onnx")
    path = Path(path)
    single = len(graph.inputs_of(snn.body)) == 2 and isinstance(graph.output_of(snn.body).args[0], Node)  # x and steps
    require(
        single and isinstance(x, Tensor),
        "An ONNX file is written of a network with one input, a tensor x [N, ...], and one output, a tensor; give such "
        "a network.",
        UnsupportedError,
    )
    if T is not None:
        model = twin(snn, T)
        for name, module in list(model.named_modules()):
            if isinstance(module, SpikingMaxPool):
                model.set_submodule(name, Pool(module))
        _export(model, (x,), path, ["x"], ["y"])
        return path
    step = Step(snn)
    state = step.start(x)
    names = [f"state_{i}" for i in range(len(state))]
    _export(step, (x, *state), path, ["x", *names], ["y", *(name.replace("state", "next") for name in names)])
    return path


def _export(module: nn.Module, inputs: tuple[Tensor, ...], path: Path, names: list[str], outputs: list[str]) -> None:
    try:
        with torch.no_grad():
            torch.onnx.export(
                module.eval(), inputs, str(path), input_names=names, output_names=outputs, dynamo=True, verbose=False,
                external_data=False,
            )  # fmt: skip
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        cause = str(error.__cause__ or error).strip().partition("\n")[0]
        raise UnsupportedError(
            f"ONNX has no form of this network: torch.onnx reports {cause!r}; export the twin or NIR."
        ) from error


class Pool(nn.Module):
    """What a max-pool does to the one mean that a twin gives it."""

    def __init__(self, pool: SpikingMaxPool) -> None:
        super().__init__()
        self.function, self.arguments = pool.function, pool.arguments

    def forward(self, x: Tensor, steps: Steps) -> Tensor:
        """Return the maxima."""
        return getattr(functional, self.function)(x, **self.arguments)


class Step(nn.Module):
    """One step of a network as a function of its input and states: ``y, *states = step(x, *states)``.

    States are those of the sites, in graph order, each [N, ...] in thresholds; neurons are computed in plain torch.

    Raises:
        UnsupportedError: With the modules whose state is more than that of neurons.
    """

    def __init__(self, snn: SpikingNetwork) -> None:
        super().__init__()
        self.net = hosted(snn, get_backend("reference")).eval()
        sites = self.net.sites().values()
        others = [(name, m) for name, m in self.net.body.named_modules() if isinstance(m, Stateful)]
        others += [(site.key, site.clock or site.stepping) for site in sites if site.clock or not site.stepping.plain]
        problems = tuple(
            Problem(name, f"{type(m).__name__} remembers more than potentials.", "Write the twin: give T.")
            for name, m in others
        ) + tuple(
            Problem(site.key, "it has several neurons for each activation.", "Write the twin: give T.")
            for site in sites
            if site.neurons > 1
        )
        if problems:
            raise UnsupportedError("; ".join(map(str, problems)), problems)

    def start(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the states before the first step for inputs like x [N, ...]."""
        state: list[Tensor] = []
        for node in self.net.body.graph.nodes:
            module = graph.module_of(self.net.body, node)
            if module in self.net.sites().values():
                site: Any = module
                v = site.start(x.new_zeros(len(x), *graph.info(node).shape[1:]))
                state += [v, *(torch.zeros_like(v) for _ in site.spec.state[1:])]
        return tuple(state)

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Advance by one step."""
        self._recall([part.clone() for part in state])
        y = self.net(x)
        return (y, *(part for site in NetworkState(self.net).sites for part in site.backend.state(site.neuron) or ()))

    def _recall(self, state: Sequence[Tensor]) -> None:
        network, parts = NetworkState(self.net), iter(state)
        network.reset()
        for site in network.sites:
            site.backend.set_state(site.neuron, tuple(next(parts) for _ in site.spec.state))
