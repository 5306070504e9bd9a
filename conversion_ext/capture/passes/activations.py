"""Activations have one form each: functions and methods become modules, every clipped ReLU one class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from conversion_ext.capture.passes.base import layers
from conversion_ext.capture.passes.calls import CallsToModules, RefusedError, Rule, parameter
from conversion_ext.graph import refresh

__all__ = ["Activations", "clipped"]


def clipped(low: Any, high: Any) -> nn.Module | None:
    """Return the one module that stands for clamp(x, low, high): ReLU, or Hardtanh(low, high) with a finite cap."""
    if not all(bound is None or isinstance(bound, int | float) for bound in (low, high)):
        return None
    low = -math.inf if low is None else low
    high = math.inf if high is None else high
    if low == 0 and high == math.inf:
        return nn.ReLU()
    return nn.Hardtanh(float(low), float(high)) if -math.inf < low < high < math.inf else None


def _relu(input: Any, inplace: bool = False) -> nn.Module:
    return nn.ReLU()


def _clamp(input: Any, min: Any = None, max: Any = None) -> nn.Module | None:
    return clipped(min, max)


def _clamp_min(input: Any, min: Any) -> nn.Module | None:
    return clipped(min, None)


def _hardtanh(input: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> nn.Module | None:
    return clipped(min_val, max_val)


def _threshold(input: Any, threshold: float, value: float, inplace: bool = False) -> nn.Module:
    return nn.ReLU() if threshold == value == 0 else nn.Threshold(threshold, value)


def _celu(input: Any, alpha: float = 1.0, inplace: bool = False) -> nn.Module:
    return nn.CELU(alpha)


def _selu(input: Any, inplace: bool = False) -> nn.Module:
    return nn.SELU()


def _rrelu(
    input: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> nn.Module:
    if training:
        raise RefusedError("is random in evaluation mode too.", "Pass training=self.training.")
    return nn.RReLU(lower, upper)


def _prelu(input: Any, weight: Tensor) -> nn.Module:
    module: Any = nn.PReLU(weight.numel(), device="meta")
    module.weight = parameter(weight)
    return module


def _sigmoid(input: Any) -> nn.Module:
    return nn.Sigmoid()


def _tanh(input: Any) -> nn.Module:
    return nn.Tanh()


def _softmax(kind: type[nn.Module]) -> Rule:
    return lambda input, dim, dtype=None: kind(dim) if dtype is None else None


def _functional_softmax(kind: type[nn.Module]) -> Rule:
    return lambda input, dim=None, _stacklevel=3, dtype=None: kind(dim) if dim is not None and dtype is None else None


# Each rule repeats the signature of what it stands for: half of these functions are builtins without one.
RULES: Mapping[Any, Rule] = MappingProxyType({
    F.relu: _relu, torch.relu: _relu, "relu": _relu,
    F.relu6: lambda input, inplace=False: clipped(0, 6),
    F.hardtanh: _hardtanh,
    torch.clamp: _clamp, torch.clip: _clamp, "clamp": _clamp, "clip": _clamp,
    torch.clamp_min: _clamp_min, "clamp_min": _clamp_min,
    F.threshold: _threshold, torch.threshold: _threshold,
    F.leaky_relu: lambda input, negative_slope=0.01, inplace=False: nn.LeakyReLU(negative_slope),
    F.rrelu: _rrelu,
    F.prelu: _prelu, torch.prelu: _prelu, "prelu": _prelu,
    F.elu: lambda input, alpha=1.0, inplace=False: nn.ELU(alpha),
    F.celu: _celu, torch.celu: _celu, F.selu: _selu, torch.selu: _selu,
    F.gelu: lambda input, approximate="none": nn.GELU(approximate),
    F.silu: lambda input, inplace=False: nn.SiLU(),
    F.mish: lambda input, inplace=False: nn.Mish(),
    F.softplus: lambda input, beta=1.0, threshold=20.0: nn.Softplus(beta, threshold),
    F.softsign: lambda input: nn.Softsign(),
    F.tanhshrink: lambda input: nn.Tanhshrink(),
    F.softshrink: lambda input, lambd=0.5: nn.Softshrink(lambd),
    F.hardshrink: lambda input, lambd=0.5: nn.Hardshrink(lambd),
    F.hardswish: lambda input, inplace=False: nn.Hardswish(),
    F.hardsigmoid: lambda input, inplace=False: nn.Hardsigmoid(),
    F.logsigmoid: lambda input: nn.LogSigmoid(),
    torch.sigmoid: _sigmoid, "sigmoid": _sigmoid, torch.tanh: _tanh, "tanh": _tanh,
    F.softmax: _functional_softmax(nn.Softmax), F.log_softmax: _functional_softmax(nn.LogSoftmax),
    torch.softmax: _softmax(nn.Softmax), torch.log_softmax: _softmax(nn.LogSoftmax),
    "softmax": _softmax(nn.Softmax), "log_softmax": _softmax(nn.LogSoftmax),
})  # fmt: skip


class Activations(CallsToModules):
    """Functional and method activations become modules; ReLU6, Hardtanh(0, b) and clamp(0, b) become Hardtanh(0, b)."""

    def __init__(self) -> None:
        super().__init__(RULES)

    def run(self, model: GraphModule) -> None:
        """Replace calls, then give equal modules one class."""
        super().run(model)
        for target, module in _noncanonical(model).items():
            parent, _, name = target.rpartition(".")
            setattr(model.get_submodule(parent), name, module.eval())
        refresh(model)

    def ensures(self, model: GraphModule) -> list[str]:
        """Calls are modules, and a clipped ReLU is a Hardtanh."""
        return super().ensures(model) + [f"{target} is not canonical." for target in _noncanonical(model)]


def _noncanonical(model: GraphModule) -> dict[str, nn.Module]:
    """Return {target: module that should be there}."""
    replaced: dict[str, nn.Module] = {}
    for node, module in layers(model, nn.Hardtanh, nn.Threshold):
        if isinstance(module, nn.Hardtanh):
            wanted = clipped(module.min_val, module.max_val)
        else:
            wanted = _threshold(None, module.threshold, module.value)
        if wanted is not None and type(wanted) is not type(module):
            replaced[str(node.target)] = wanted
    return replaced
