"""The packages that read NIR, each run for T steps with the spikes of every site recorded."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["INSTALLED", "networks", "spikes_of"]

PACKAGES = {"spikingjelly": "spikingjelly", "snntorch": "snntorch", "sinabs": "sinabs", "norse": "norse"}


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


INSTALLED = [reader for reader, package in PACKAGES.items() if _installed(package)]


class Residual(nn.Module):
    """An identity shortcut, whose scale stays, and one with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.d, self.down = nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(8, 12, 1, 2)
        self.pool, self.head = nn.AvgPool2d(2), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(x + self.b(self.relu(self.a(x))))
        x = self.relu(self.down(x) + self.d(self.relu(self.c(x))))
        return self.head(self.pool(x).flatten(1))


def networks() -> dict[str, nn.Module]:
    """Return ANNs for images [N, 1, 8, 8]."""
    return {
        "average-pool CNN": nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10),
        ),
        "ResNet": Residual(),
        "MLP": nn.Sequential(
            nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10)
        ),
    }  # fmt: skip


def spikes_of(reader: str, graph: Any, x: Tensor, T: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return {NIR node of neurons: spikes [T, N, ...]} and the mean output of ``graph`` as ``reader`` runs it."""
    spikes: dict[str, list[Tensor]] = {}
    names = [name for name, node in graph.nodes.items() if type(node).__name__ in ("IF", "LIF")]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        model, run = _RUN[reader](graph, len(x))
        for name in names:
            spikes[name] = []
            model.get_submodule(name).register_forward_hook(_recorder(spikes[name]))
        output = run(model, x, T)
    recorded = {}
    for name, steps in spikes.items():
        all_steps = torch.stack(steps) if len(steps) > 1 else steps[0].unflatten(0, (len(x), T)).transpose(0, 1)
        recorded[name] = all_steps
    return recorded, output


def _recorder(kept: list[Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output).detach().clone())

    return hook


def _step_by_step(model: nn.Module, x: Tensor, T: int) -> Tensor:
    state, total = None, torch.zeros(())
    for _ in range(T):
        y, state = model(x, state)
        total = total + y
    return total / T


def _folded(model: nn.Module, x: Tensor, T: int) -> Tensor:
    y = model(x.repeat_interleave(T, 0))
    return (y[0] if isinstance(y, tuple) else y).unflatten(0, (len(x), T)).mean(1)


def _spikingjelly(graph: Any, N: int) -> Any:
    module = importlib.import_module("spikingjelly.activation_based.nir_exchange")
    return module.import_from_nir(graph, dt=1e-4), _step_by_step


def _snntorch(graph: Any, N: int) -> Any:
    return importlib.import_module("snntorch.import_nir").import_from_nir(graph), _step_by_step


def _sinabs(graph: Any, N: int) -> Any:
    return importlib.import_module("sinabs.nir").from_nir(graph, batch_size=N), _folded


def _norse(graph: Any, N: int) -> Any:
    return importlib.import_module("norse.torch").from_nir(graph), _step_by_step


_RUN = {"spikingjelly": _spikingjelly, "snntorch": _snntorch, "sinabs": _sinabs, "norse": _norse}
