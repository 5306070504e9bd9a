"""Networks that react to their input: with fresh or random BatchNorm statistics half the zoo is constant functions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tests import zoo

__all__ = ["live", "live_inputs", "make_live", "perceptron", "tensors_of"]

Model = TypeVar("Model", bound=nn.Module)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm)
WEIGHTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def make_live(model: Model, *shape: int, seed: int = 0) -> Model:
    """Return ``model`` in evaluation mode, changed so that f(x1) and f(x2) differ by at least 0.3 |f(x1)|.

    One pass over random inputs [8, *shape] takes BatchNorm statistics (batch mode, momentum 1) and scales every
    weight layer to outputs of deviation 1; norms get random gains and shifts, and parameters that start near zero
    (residual gains, layer scales, heads) become random ones.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        _revive(model, generator)
        _fit(model, live_inputs(model, *shape, seed=seed))
        first, second = (_flat(model(x)) for x in live_inputs(model, *shape, seed=seed + 1)[:2].split(1))
    distance, size = float((first - second).norm()), float(first.norm())
    name = type(model).__name__
    assert distance >= 0.3 * size > 0, f"{name} is not live: |f(x1) - f(x2)| = {distance:.3g}, |f(x1)| = {size:.3g}"
    return model


def live_inputs(model: nn.Module, *shape: int, samples: int = 8, seed: int = 0) -> Tensor:
    """Return random inputs [samples, *shape] in the dtype of ``model``: noise around a random mean per channel."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, *shape, generator=generator)
    means = torch.randn(samples, *shape[:1], *[1] * (len(shape) - 1), generator=generator)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return (noise + means).to(dtype)


def live(name: str, samples: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """Return a small network or a family of the zoo, live and the same at every call, and inputs [samples, ...]."""
    build, shape = {**zoo.SMALL, **zoo.FAMILIES}[name]
    torch.manual_seed(0)
    ann = make_live(build(), *shape).to(dtype)
    return ann, live_inputs(ann, *shape, samples=samples, seed=seed)


def perceptron(*widths: int, seed: int = 0) -> nn.Sequential:
    """Return linear layers of these widths with ReLUs between them, the same at every call."""
    torch.manual_seed(seed)
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).eval()


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors of an output of any structure."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _flat(output: Any) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors_of(output)])


def _revive(model: nn.Module, generator: torch.Generator) -> None:
    def uniform(tensor: Tensor) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)

    def normal(tensor: Tensor, deviation: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation)

    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, NORMS):
                uniform(parameter) if name == "weight" else normal(parameter, 0.3)
            elif parameter.abs().max() > 1e-3:
                continue
            elif name == "bias":
                normal(parameter, 0.1)
            elif isinstance(module, WEIGHTS):
                normal(parameter, parameter[0].numel() ** -0.5)
            else:
                uniform(parameter)


def _fit(model: nn.Module, x: Tensor) -> None:
    done: set[int] = set()

    def scale(module: Any, inputs: Any, output: Tensor) -> Tensor | None:
        if id(module) in done:  # a layer called twice keeps what its first call gave it
            return None
        done.add(id(module))
        channel = output.dim() - 1 if isinstance(module, nn.Linear) else 1
        others = [dim for dim in range(output.dim()) if dim != channel]
        mean = output.mean(others) if module.bias is not None else output.new_zeros(output.shape[channel])
        centred = output - mean.reshape([-1 if dim == channel else 1 for dim in range(output.dim())])
        deviation = centred.std().clamp(min=1e-6)
        module.weight.div_(deviation)
        if module.bias is not None:
            module.bias.sub_(mean).div_(deviation)
        return centred / deviation

    model.eval()
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    handles = [m.register_forward_hook(scale) for m in model.modules() if isinstance(m, WEIGHTS) and _plain(m)]
    for norm in norms:
        norm.train().momentum = 1.0
    model(x)
    for handle in handles:
        handle.remove()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def _plain(module: nn.Module) -> bool:
    """Return whether the weight is a parameter, not one computed by a parametrization or a hook."""
    return isinstance(dict(module.named_parameters(recurse=False)).get("weight"), nn.Parameter)
