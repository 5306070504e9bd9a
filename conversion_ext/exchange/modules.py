"""Modules as plain descriptions and back: what pickle does, but with classes and values of closed lists only."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from conversion_ext.backends import Backend
from conversion_ext.backends.base import framework_attributes, is_framework_subclass
from conversion_ext.errors import FileError, require
from conversion_ext.exchange import catalogue, neurons
from conversion_ext.exchange.names import parts_read, parts_written
from conversion_ext.exchange.tensors import Tensors
from conversion_ext.exchange.values import Values
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.time import Function
from conversion_ext.nn.max_pool import SpikingMaxPool
from conversion_ext.types import PerLayer

__all__ = ["Modules"]

RESERVED = frozenset({*vars(nn.Module()), *dir(nn.Module)})
POOLS = tuple(f"{kind}max_pool{dims}d" for kind in ("", "adaptive_") for dims in (1, 2, 3))
OF_FRAMEWORKS = frozenset({"_backend"})  # what SpikingJelly 0.0.0.0.14 has, and we gave to modules for it
OF_INTEGERS = frozenset({"weight_exponent", "bias_exponent"})  # what integers() adds to layers and scales
OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # hooks, parameters, children: written in their own way, or not at all


class Modules:
    """The modules of one network by number; one that is used in two places is one.

    ``backend`` builds the neurons of what is read.
    """

    def __init__(self, tensors: Tensors, written: list[Any] | None = None, backend: Backend | None = None) -> None:
        self.tensors, self.backend = tensors, backend
        self.values = Values(tensors, self)
        self.written: list[Any] = [] if written is None else written
        self._classes = catalogue.modules()
        self._names = {cls: name for name, cls in self._classes.items()}
        self._numbers: dict[int, int] = {}
        self._made: dict[int, nn.Module] = {}

    def index_of(self, module: nn.Module, path: str = "constant") -> int:
        """Return the number of ``module``, written now if it is new; its tensors are named after ``path``."""
        if id(module) not in self._numbers:
            number = self._numbers[id(module)] = len(self.written)
            self.written.append(None)
            self.written[number] = self._write(module, path)
            self._made[number] = module  # alive, so that no other takes its id
        return self._numbers[id(module)]

    def at(self, number: int) -> nn.Module:
        """Return the module of this number, made now if it is new."""
        if number not in self._made:
            known = type(number) is int and 0 <= number < len(self.written)
            require(known, f"it has no module of number {number!r}.", FileError)
            self._made[number] = self._read(self.written[number])
        return self._made[number]

    def _write(self, module: nn.Module, path: str) -> dict[str, Any]:
        cls = catalogue.kept_class(module, self._names)
        derived = cls is not type(module) and not is_framework_subclass(type(module))
        plain: dict[str, Any] = module.__getstate__()
        left_out = OF_EVERY_MODULE | OF_FRAMEWORKS | framework_attributes(module)
        attributes = {key: value for key, value in plain.items() if key not in left_out}
        attributes = parts_written(cls, self._attributes(attributes, derived))
        written: dict[str, Any] = {"class": self._names[cls], "attributes": attributes}
        for kind, held in (("parameters", module._parameters), ("buffers", module._buffers)):  # noqa: SLF001 (None too)
            if held:
                written[kind] = {
                    key: value if value is None else self.tensors.name_of(value, f"{path}.{key}")
                    for key, value in parts_written(cls, held).items()
                }
        passing = parts_written(cls, module._buffers).keys() - parts_written(cls, module.state_dict()).keys()  # noqa: SLF001
        if passing:
            written["passing"] = sorted(passing)
        children = dict(module.named_children())
        if isinstance(module, SpikingSite):
            written["neuron"] = neurons.write(module, children.pop("neuron"), self.tensors, path)
        if children:
            children = parts_written(cls, children)
            written["children"] = {key: self.index_of(child, f"{path}.{key}") for key, child in children.items()}
        return written

    def _attributes(self, attributes: dict[str, Any], derived: bool) -> dict[str, Any]:
        """Write attributes; those that a ``derived`` class added, and that no file can hold, do not count."""
        written = {}
        for key, value in attributes.items():
            try:
                written[key] = self.values.write(value)
            except FileError:
                if not derived:
                    raise
        return written

    def _read(self, written: dict[str, Any]) -> nn.Module:
        cls = catalogue.listed(self._classes, written["class"], "module")
        attributes = {key: self.values.read(value) for key, value in written["attributes"].items()}
        attributes = {key: value for key, value in parts_read(cls, attributes).items() if key not in OF_FRAMEWORKS}
        for key in attributes:
            taken = key in RESERVED or callable(getattr(cls, key, None)) or not key.isidentifier()
            require(not taken, _no_attribute(cls, key), FileError)
        parameters, buffers, children = (
            parts_read(cls, written.get(kind, {})) for kind in ("parameters", "buffers", "children")
        )
        held = {
            **{key: self._tensor(name) for key, name in (parameters | buffers).items()},
            **{key: self.at(number) for key, number in children.items()},
        }
        if issubclass(cls, SpikingSite):
            assert self.backend is not None
            attributes["backend_name"] = self.backend.name
            held["neuron"] = neurons.read(written["neuron"], attributes["spec"], self.backend, self.tensors)
        module = self._new(cls, attributes | held)
        for key in held:
            vars(module).pop(key, None)  # None until there is one
        for key in parameters:
            module.register_parameter(key, held[key])
        passing = parts_read(cls, dict.fromkeys(written.get("passing", ())))
        for key in buffers:
            module.register_buffer(key, held[key], persistent=key not in passing)
        for key, child in held.items():
            if isinstance(child, nn.Module):
                module.add_module(key, child)
        module.__setstate__({**vars(module), **attributes})  # layers of torch complete what older versions wrote
        self._check_names(module)
        return module.eval()

    def _tensor(self, name: str | None) -> Any:
        return None if name is None else self.tensors.named(name)

    def _new(self, cls: type[nn.Module], given: dict[str, Any]) -> nn.Module:
        """Return an object of ``cls`` with the defaults of this release, which a file of an older one may lack."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD][1:]
        if issubclass(cls, SpikingSite):
            assert self.backend is not None
            module = cls(given["key"], given["spec"], self.backend, given["threshold"], PerLayer())
        elif cls.__module__.startswith("conversion_ext.") and all(name in given for name in needed):
            module = cls(**{name: given[name] for name in needed})
        else:
            module = cls.__new__(cls)
            nn.Module.__init__(module)
            return module
        # An attribute that was renamed would be set under its old name, and the new one keep its default.
        unknown = [name for name in given if name not in dir(module) and name not in OF_INTEGERS]
        require(not unknown, _no_attribute(cls, *unknown), FileError)
        return module

    @staticmethod
    def _check_names(module: nn.Module) -> None:
        """Raise FileError where a module would call by name what is on no list."""
        if isinstance(module, Function) and isinstance(module.target, str):
            require(module.target in catalogue.methods(), f"it calls Tensor.{module.target}.", FileError)
        if isinstance(module, SpikingMaxPool):
            known = module.function in POOLS
            require(known, f"it pools by {module.function!r}, not one of {', '.join(POOLS)}.", FileError)


def _no_attribute(cls: type, *names: str) -> str:
    return f"it sets {', '.join(map(repr, names))}, which no {cls.__name__} of this release keeps."
