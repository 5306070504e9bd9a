"""The closed lists of what a file may name: value classes, module classes, functions and methods."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

from conversion_ext.backends.base import is_framework_subclass
from conversion_ext.capture.demands import Demand
from conversion_ext.encoders import Encoder
from conversion_ext.errors import FileError, require
from conversion_ext.exchange.names import class_name
from conversion_ext.graph import is_stock
from conversion_ext.network.record import Options, Record, Widths
from conversion_ext.neurons import Neuron
from conversion_ext.normalizers import Normalizer
from conversion_ext.operators.base import operators
from conversion_ext.readouts import Readout
from conversion_ext.readouts.confidence import Confidence
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.registry import load_plugins
from conversion_ext.tuners import Tuner
from conversion_ext.types import Family, PerChannel, PerLayer, Reset

__all__ = ["functions", "kept_class", "listed", "methods", "modules", "values"]

KINDS: dict[str, type] = {
    "neuron": Neuron, "normalizer": Normalizer, "tuner": Tuner, "encoder": Encoder, "readout": Readout,
    "demand": Demand,
}  # fmt: skip
SINGLE = (Confidence, Family, Options, PerChannel, PerLayer, Recipe, Record, Reset, Widths)


def values() -> dict[str, type]:
    """Return {name: class} of frozen values and enumerations: ``neuron.IF``, ``tuner.BiasCorrection``, ``Recipe``.

    A class that a plug-in derives from one of the bases is in it as soon as it is imported.
    """
    load_plugins()
    kinds: dict[str, type] = {class_name(cls): cls for cls in SINGLE}
    for kind, base in KINDS.items():
        kinds |= {f"{kind}.{class_name(cls)}": cls for cls in family(base)}
    return kinds


def modules() -> dict[str, type[nn.Module]]:
    """Return {name: class} of modules: ``torch.nn.Conv2d``, ``cx.SpikingSite``, and all that are operators."""
    load_plugins()
    kinds = {
        f"torch.nn.{name}": cls
        for name, cls in vars(nn).items()
        if isinstance(cls, type) and issubclass(cls, nn.Module) and cls is not nn.Module
    }
    for cls in family(nn.Module):
        ours = cls.__module__.startswith("conversion_ext.") and not is_framework_subclass(cls)
        if ours and getattr(sys.modules[cls.__module__], cls.__qualname__, None) is cls:
            kinds[f"cx.{class_name(cls)}"] = cls
    for target in operators.keys().values():
        if isinstance(target, type) and issubclass(target, nn.Module) and target not in kinds.values():
            kinds[f"{target.__module__}.{target.__qualname__}"] = target
    return kinds


def kept_class(module: nn.Module, kept: Collection[type]) -> type[nn.Module]:
    """Return the class as which ``module`` is kept; one that only inherits ``forward`` counts as its base."""
    kind = type(module)
    base = next((cls for cls in kind.__mro__ if cls in kept), nn.Module)
    same = base is kind or is_framework_subclass(kind) or is_stock(module)
    require(
        base is not nn.Module and same,
        f"The network holds a {kind.__module__}.{kind.__qualname__}, and a file holds layers of torch.nn, modules of "
        "conversion_ext and classes given to conversion_ext.register_operator; register the class.",
        FileError,
    )
    return base


def listed(known: Mapping[str, Any], name: Any, what: str) -> Any:
    """Return the entry ``name`` of a closed list; raise FileError where there is none."""
    require(
        isinstance(name, str) and name in known,
        f"it names the {what} {name!r}, which is not known here; is a plug-in missing?",
        FileError,
    )
    return known[name]


def functions() -> dict[str, Any]:
    """Return {name: function} of what nodes may call: every function that an operator is registered for."""
    load_plugins()
    return {name: target for name, target in operators.keys().items() if _is_function(target)}


def methods() -> set[str]:
    """Return the names of the tensor methods that nodes may call."""
    load_plugins()
    return {target for target in operators.keys().values() if isinstance(target, str)}


def _is_function(target: Any) -> bool:
    return callable(target) and not (isinstance(target, type) and issubclass(target, nn.Module))


def family(base: type) -> Iterator[type]:
    """Iterate over ``base`` and all classes derived from it."""
    yield base
    for cls in base.__subclasses__():
        yield from family(cls)
