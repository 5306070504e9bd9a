"""The neurons of a site: a file holds their value and what they learned; a backend builds them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from conversion_ext.backends import Backend
from conversion_ext.exchange.names import parts_read, parts_written
from conversion_ext.exchange.tensors import Tensors
from conversion_ext.network.site import SpikingSite
from conversion_ext.neurons import Neuron

__all__ = ["read", "write"]

LEAST = 1e-6  # what a learned share that training moved to 0 or below starts from in another framework


def write(site: SpikingSite, neuron: nn.Module, tensors: Tensors, path: str) -> dict[str, Any]:
    """Return what the neurons of ``site`` learned, as numbers, and the parameters in which their framework keeps it."""
    held = site.spec.holding(neuron)
    return {
        "backend": site.backend_name,
        "learned": parts_written(type(site.spec), {name: getattr(held, name).item() for name in site.spec.learned}),
        "parameters": {key: tensors.name_of(value, f"{path}.neuron.{key}") for key, value in neuron.named_parameters()},
    }


def read(written: dict[str, Any], spec: Neuron, backend: Backend, tensors: Tensors) -> nn.Module:
    """Return neurons of ``backend`` for ``spec``, with the learned values of ``written``."""
    kept = parts_read(type(spec), written["learned"])
    learned = {name: max(float(kept[name]), LEAST) for name in spec.learned}
    same = written["backend"] == backend.name
    neuron = backend.neuron(replace(spec, **learned) if learned and not same else spec)
    if same:
        for name, _ in list(neuron.named_parameters()):
            setattr(neuron, name, tensors.named(written["parameters"][name]))
    return neuron
