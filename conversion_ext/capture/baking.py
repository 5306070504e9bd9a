"""Give every layer of a private copy its plain torch.nn form: no parametrization, no quantizer, no framework."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from conversion_ext.capture.attention import open_attention
from conversion_ext.errors import Problem, UnsupportedError, warn

__all__ = ["bake"]

SPIKINGJELLY_LAYERS = "spikingjelly.activation_based.layer"
SPIKING_NEURONS = ("spikingjelly.activation_based.neuron", "snntorch._neurons")
QUANTIZED = "torch.ao.nn.qat"
FUSED = "torch.ao.nn.intrinsic"


def bake(model: nn.Module) -> nn.Module:
    """Return ``model``, rewritten in place; its function stays the same, except where a warning is given.

    Raises UnsupportedError naming every module that has no plain form.
    """
    _bake_parametrizations(model)
    problems = [problem for path, module in model.named_modules() if (problem := _refused(path, module)) is not None]
    if problems:
        raise UnsupportedError("; ".join(map(str, problems)), tuple(problems))
    model = open_attention(model)
    for module in model.modules():
        kind = type(module).__module__
        if kind.startswith(SPIKINGJELLY_LAYERS):
            _plain_layer(module)
        elif kind.startswith(QUANTIZED):
            _bake_fake_quantizer(module)
    quantizers = [path for path, module in model.named_modules() if hasattr(module, "activation_post_process")]
    quantizers = [path for path in quantizers if _quantizes(model.get_submodule(path))]
    if quantizers:
        warn(
            f"The quantizers of activations behind {', '.join(quantizers)} are left out: "
            "spikes quantize to what T steps can express. Weights keep their levels."
        )
    return model


def _refused(path: str, module: nn.Module) -> Problem | None:
    """Return why ``module`` has no plain form, or None."""
    kind = type(module).__module__
    if kind.startswith(SPIKINGJELLY_LAYERS) and getattr(module, "step_mode", "s") != "s":
        return Problem(path, "is a layer in multi-step mode.", "Call functional.set_step_mode(net, 's') first.")
    if kind.startswith(SPIKING_NEURONS):
        return Problem(path, "is a spiking neuron already.", "Give the network with ReLU in the place of its neurons.")
    if kind.startswith(FUSED):
        remedy = "Prepare for quantization without fuse_modules, or give the float network."
        return Problem(path, f"is {type(module).__name__}, several layers in one.", remedy)
    return None


def _bake_parametrizations(model: nn.Module) -> None:
    """Replace every parametrized tensor by its value.

    ``parametrize.remove_parametrizations`` would delete the property from the class that the copy
    shares with the user's module and so break the user's module.
    """
    for module in list(model.modules()):
        if not parametrize.is_parametrized(module):
            continue
        lists: Any = module.parametrizations
        with torch.no_grad():
            values = {name: getattr(module, name).clone() for name in lists}
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, value in values.items():
            if list(lists[name].parameters(recurse=False)):
                trained = any(p.requires_grad for p in lists[name].parameters())
                module.register_parameter(name, nn.Parameter(value, requires_grad=trained))
            else:
                module.register_buffer(name, value)


def _plain_layer(module: nn.Module) -> None:
    """Turn a single-step layer of SpikingJelly into the torch.nn layer that it extends."""
    if "Dropout" in type(module).__name__:
        module.__class__ = nn.Identity
        return
    base = next((kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.modules.")), nn.Module)
    if base not in (nn.Module, nn.Sequential):
        module.__class__ = base


def _bake_fake_quantizer(module: Any) -> None:
    """Turn a layer of quantization-aware training into a plain one whose weights have the levels that it uses."""
    quantizer = module.weight_fake_quant
    quantizer.disable_observer()  # it would move the levels
    with torch.no_grad():
        weight = quantizer(module.weight)
    del module.weight_fake_quant
    module.__class__ = next(k for k in type(module).__mro__ if k.__module__.startswith("torch.nn.modules."))
    module.weight = nn.Parameter(weight, requires_grad=module.weight.requires_grad)


def _quantizes(module: Any) -> bool:
    """Return whether what a layer gives is quantized while it trains."""
    return "FakeQuant" in type(module.activation_post_process).__name__
