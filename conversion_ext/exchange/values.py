"""Plain values as JSON and back, by closed lists of names: reading builds values and runs nothing else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from conversion_ext.errors import FileError, require
from conversion_ext.exchange import catalogue
from conversion_ext.exchange.names import parts_read, parts_written
from conversion_ext.exchange.tensors import Tensors
from conversion_ext.network.time import Function

__all__ = ["Values"]

SCALARS = (type(None), bool, int, str)


@dataclass
class Values:
    """Writes and reads the values of one network; tensors, modules and nodes are kept beside and named by these.

    Scalars and lists stand for themselves; any other value is an object with one entry, ``{"tuple": [1, 2]}``.
    """

    tensors: Tensors
    modules: Any
    nodes: dict[str, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.classes = catalogue.values()
        self.functions = catalogue.functions()
        self.class_names = {cls: name for name, cls in self.classes.items()}
        self.function_names = {id(function): name for name, function in self.functions.items()}

    def write(self, value: Any) -> Any:
        """Return what stands for ``value`` in JSON; raise FileError for a value that a file cannot hold."""
        if type(value) in SCALARS or (type(value) is float and math.isfinite(value)):
            return value
        if isinstance(value, list):
            return [self.write(part) for part in value]
        for tag, form in FORMS.items():
            if isinstance(value, form.kind):
                return {tag: form.write(self, value)}
        if dataclasses.is_dataclass(value):
            return {"value": [self._class_name(value), self._fields(value)]}
        require(id(value) in self.function_names, _unknown(value), FileError)
        return {"function": self.function_names[id(value)]}

    def read(self, written: Any) -> Any:
        """Return the value that ``written`` stands for; raise FileError for a name that is on no list."""
        if type(written) in (*SCALARS, float):
            return written
        if type(written) is list:
            return [self.read(part) for part in written]
        ((tag, form),) = written.items()
        if tag == "value":
            name, fields = form
            cls = catalogue.listed(self.classes, name, "value")
            return cls(**parts_read(cls, {key: self.read(part) for key, part in fields.items()}))
        if tag == "function":
            return catalogue.listed(self.functions, form, "function")
        return catalogue.listed(FORMS, tag, "kind of value").read(self, form)

    def _class_name(self, value: Any) -> str:
        require(type(value) in self.class_names, _unknown(value), FileError)
        return self.class_names[type(value)]

    def _fields(self, value: Any) -> dict[str, Any]:
        fields = {f.name: self.write(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return parts_written(type(value), fields)

    def enum(self, written: list[Any]) -> Enum:
        """Return the member of an enumeration for [name of the class, value]."""
        return catalogue.listed(self.classes, written[0], "value")(written[1])

    def enumerated(self, value: Enum) -> list[Any]:
        """Return [name of the class, value] of the member of an enumeration."""
        return [self._class_name(value), value.value]


@dataclass(frozen=True)
class Form:
    """How values of one kind are written and read."""

    kind: Any
    write: Callable[[Values, Any], Any]
    read: Callable[[Values, Any], Any]


def _tuple(values: Values, value: tuple[Any, ...]) -> list[Any]:
    require(type(value) is tuple, _unknown(value), FileError)
    return [values.write(part) for part in value]


def _of_torch(kind: type) -> Form:
    def read(values: Values, name: str) -> Any:
        value = getattr(torch, name, None)
        require(isinstance(value, kind), f"it names torch.{name}, which is no {kind.__name__}.", FileError)
        return value

    return Form(kind, lambda values, v: str(v).removeprefix("torch."), read)


FORMS = {
    "float": Form(float, lambda s, v: str(v), lambda s, w: float(w)),  # those that JSON lacks
    "enum": Form(Enum, Values.enumerated, Values.enum),
    "node": Form(Node, lambda s, v: v.name, lambda s, w: s.nodes[w]),
    "tensor": Form(Tensor, lambda s, v: s.tensors.name_of(v), lambda s, w: s.tensors.named(w)),
    "module": Form(nn.Module, lambda s, v: s.modules.index_of(v), lambda s, w: s.modules.at(w)),
    "slot": Form(Function.Slot, lambda s, v: int(v), lambda s, w: Function.Slot(w)),
    "size": Form(torch.Size, lambda s, v: list(v), lambda s, w: torch.Size(w)),
    "tuple": Form(tuple, _tuple, lambda s, w: tuple(s.read(part) for part in w)),
    "dict": Form(
        dict,
        lambda s, v: [[s.write(key), s.write(part)] for key, part in v.items()],
        lambda s, w: {s.read(key): s.read(part) for key, part in w},
    ),
    "slice": Form(
        slice,
        lambda s, v: [s.write(part) for part in (v.start, v.stop, v.step)],
        lambda s, w: slice(*(s.read(part) for part in w)),
    ),
    "ellipsis": Form(type(...), lambda s, v: None, lambda s, w: ...),
    "device": Form(torch.device, lambda s, v: str(v), lambda s, w: torch.device(w)),
    "dtype": _of_torch(torch.dtype),
    "memory_format": _of_torch(torch.memory_format),
    "layout": _of_torch(torch.layout),
}


def _unknown(value: Any) -> str:
    kind = type(value)
    return (
        f"The network holds {value!r} ({kind.__module__}.{kind.__qualname__}), and a file holds numbers, strings, "
        "tensors, plain containers, frozen values of conversion_ext and functions given to register_operator."
    )
