"""A converted network as a model of NeuroBench, whose benchmarks run it and whose metrics count it."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from conversion_ext.errors import optional_import, require
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.simulation.samples import require_network

__all__ = ["model"]


def model(snn: SpikingNetwork, T: int | None = None) -> Any:
    """Return ``snn`` as a ``neurobench.models.SNNTorchModel`` for a ``Benchmark``, its neurons those of snnTorch.

    Of a batch it returns the readout current of every step, [N, T, classes], whose sum over time decides. Effective
    ACs, activation sparsity, membrane updates and accuracy are those of ``synops`` and ``evaluate``. Effective MACs
    count the image's layer at each of T steps, ours once, since the current of an image is constant.

    Args:
        snn: What ``convert`` returned, with one output.
        T: The number of steps for which an input [N, ...] goes through the recipe's encoder; None for data that are
            sequences already, [N, T, ...].

    Raises:
        MissingError: The package neurobench is not installed, or snnTorch is not.

    Reference: Yik et al., Nat. Commun. 2025 (NeuroBench).
    """
    require_network(snn)
    require(T is None or (isinstance(T, int) and T >= 1), f"T={T!r}: the number of steps is an integer >= 1, or None.")
    base: Any = optional_import("neurobench.models", "neurobench", "neurobench").SNNTorchModel
    encoder = snn.conversion.recipe.encoder

    class Model(base):
        """A converted network that encodes its inputs and forgets its state behind every batch."""

        def __call__(self, batch: Tensor) -> Tensor:
            if T is not None:
                noise = torch.Generator().manual_seed(0)
                batch = torch.stack(list(encoder.encode(repeat(batch, T), T, noise)), dim=1)
            with torch.no_grad():
                outputs = super().__call__(batch)
            self.net.reset()  # or its membranes would count as memory of the network
            return outputs

    return Model(snn.as_snntorch())
