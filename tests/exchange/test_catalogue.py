"""Whatever can be registered can be saved: walks over the registries, which a new method joins by itself."""

from __future__ import annotations

import dataclasses
import inspect
from enum import Enum
from typing import Any

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext import recipes
from conversion_ext.backends.base import is_framework_subclass
from conversion_ext.exchange import catalogue
from conversion_ext.exchange.modules import Modules
from conversion_ext.exchange.tensors import Tensors
from conversion_ext.network.stepping import Stepping
from conversion_ext.nn.stateful import Memory
from conversion_ext.normalizers import normalizers
from conversion_ext.operators.base import operators
from conversion_ext.tuners import tuners


def kept(value: Any) -> Any:
    """Write a value and read it in other hands."""
    tensors = Tensors()
    written = Modules(tensors).values.write(value)
    return Modules(Tensors(tensors.data, tensors.facts)).values.read(written)


def default(cls: type) -> Any:
    try:
        return cls()
    except TypeError:
        pytest.skip("takes arguments")


@pytest.mark.parametrize("name", catalogue.values())
def test_values(name: str) -> None:
    cls = catalogue.values()[name]
    for value in list(cls) if issubclass(cls, Enum) else [default(cls)]:
        again = kept(value)
        assert again == value
        assert type(again) is cls


def test_every_registered_method_is_listed() -> None:
    listed = set(catalogue.values().values())
    assert len(listed) == len(catalogue.values()) > 40
    for registry in (normalizers, tuners):
        classes = [cls for _, cls in registry.items()]
        assert classes
        assert set(classes) <= listed
    for name, recipe in recipes.items():
        assert kept(recipe) == recipe, name


def test_every_class_named_by_a_base_has_a_name_of_its_own() -> None:
    for base in (*catalogue.KINDS.values(), nn.Module):
        own = [cls for cls in set(catalogue.family(base)) if cls.__module__.startswith("conversion_ext.")]
        names = [
            cls.__name__ for cls in own if not is_framework_subclass(cls)
        ]  # those are made while networks are converted
        ours = [name for name in names if base is not nn.Module or f"cx.{name}" in catalogue.modules()]
        assert len(ours) == len(set(ours)), sorted(ours)


@pytest.mark.parametrize("name", catalogue.functions())
def test_functions(name: str) -> None:
    assert kept(catalogue.functions()[name]) is catalogue.functions()[name]


def test_names_of_operators_are_unambiguous() -> None:
    assert len(operators.keys()) == len(operators.names()) > 100


MODULES = [cls for cls in dict.fromkeys(catalogue.family(Memory)) if cls in catalogue.modules().values()]
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "Clamped": (3,), "Masked": (4, "paper"), "Shifted": (4, 1), "IntegerStepping": ("a", 12, 4, 24, True),
    "Differential": (nn.Sigmoid(),), "SpikingMaxPool": ("max_pool2d", {"kernel_size": 2}), "SpikingMaxPool1d": (2,),
    "SpikingMaxPool2d": (2,), "SpikingMaxPool3d": (2,),
}  # fmt: skip


def plain_arguments(cls: type) -> list[Any]:
    """Return a value for every argument that has no default and takes a number or a string."""
    plain = {"int": 3, "float": 0.5, "str": "a", "bool": True}
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return [plain[p.annotation] for p in parameters if p.default is p.empty and p.annotation in plain]


@pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)
def test_modules_with_state(cls: type[nn.Module]) -> None:
    """Every stepping and stateful module: made from the arguments above, written, read, the same attributes."""
    try:
        module = cls(*ARGUMENTS.get(cls.__name__, plain_arguments(cls)))
    except TypeError:
        if cls.__name__.startswith("_") or cls.__module__.startswith("conversion_ext.training"):
            pytest.skip("a base, or of a training that is under way")
        raise
    tensors = Tensors()
    modules = Modules(tensors)
    number = modules.index_of(module)
    again = Modules(Tensors(tensors.data, tensors.facts), modules.written).at(number)
    assert type(again) is cls
    assert repr(again) == repr(module)
    assert vars(again).keys() == vars(module).keys()
    if isinstance(module, Stepping):
        assert again.plain == module.plain


def test_values_that_no_file_holds_are_refused() -> None:
    for value in (object(), lambda x: x, {1, 2}, torch.Generator(), 1j):
        with pytest.raises(cx.errors.FileError, match="a file holds"):
            kept(value)


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, 2**70, 0.1, float("inf"), "text", (1, (2, [3])), {"a": (1,), 2: None}, slice(1, None, 2), ...,
        torch.Size([1, 2]), torch.float32, torch.channels_last, torch.strided, torch.device("cpu"), 1e-320, -0.0,
    ],
    ids=repr,
)  # fmt: skip
def test_plain_values(value: Any) -> None:
    again = kept(value)
    assert again == value
    assert type(again) is type(value)
    assert repr(again) == repr(value)


def test_tensors_keep_their_order_in_memory_and_their_identity() -> None:
    last = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    one = torch.empty_strided((6, 1, 3, 3), (9, 1, 3, 1)).normal_()
    part, turned, spread = torch.rand(4, 6)[:, ::2], torch.rand(3, 4).T, torch.rand(3, 1).expand(3, 4)
    values = kept([last, one, part, turned, spread, last, nn.Parameter(one)])
    for before, after in zip((last, one, part, turned, spread), values, strict=False):
        assert torch.equal(before, after)
    assert values[0].stride() == last.stride()
    assert values[1].stride() == one.stride()
    assert values[3].stride() == turned.stride()
    assert values[5] is values[0]
    assert isinstance(values[6], nn.Parameter)


def test_dataclasses_in_the_catalogue_are_frozen() -> None:
    for name, cls in catalogue.values().items():
        if dataclasses.is_dataclass(cls):
            assert cls.__dataclass_params__.frozen, name  # type: ignore[attr-defined]
