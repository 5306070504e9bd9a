"""Networks on a GPU reach for no tensor on the CPU: fake tensors tell devices apart on machines that have none.

What decides by numbers (calibration, tuners, early exit) cannot run on them; ``test_gpu.py`` does that on a real one.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import conversion_ext as cx
from conversion_ext import graph
from conversion_ext.conversion import thresholds
from conversion_ext.graph.values import tensors_in
from conversion_ext.network.site import SpikingSite
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.neurons import Neuron
from conversion_ext.nn import max_pool
from conversion_ext.operators.base import Operator, context_of, operator_of
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.simulation.run import Runner
from tests import zoo
from tests.discovery import values_of

NEURONS = values_of(Neuron)
RECIPES = [name for name in cx.recipes.names() if name.startswith("default")]
pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data")


@pytest.fixture(autouse=True)
def windows_hold_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools ask whether a window is all padding, which is about numbers."""
    monkeypatch.setattr(max_pool, "bool", lambda value: True, raising=False)


def on_gpu(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Return a copy whose parameters and buffers are fakes on a GPU."""

    def moved(value: Tensor) -> Tensor:
        fake = mode.from_tensor(value.detach())
        with mode:
            return fake.to("cuda")

    module = copy.deepcopy(module)
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            part._parameters[name] = nn.Parameter(moved(parameter))
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = moved(buffer)
    return module


def converted(name: str, recipe: str | Recipe = "default", T: int | None = 4) -> tuple[SpikingNetwork, tuple[int, ...]]:
    build, shape = zoo.SMALL[name]
    torch.manual_seed(0)
    shape = tuple(shape[1:] if len(shape) > 3 else shape)
    x = torch.rand(4, *shape)
    return cx.convert(build().eval(), x, recipe=recipe, T=T, backend="reference", progress=False), shape


def simulated(snn: SpikingNetwork, shape: tuple[int, ...], frames: int = 0, **options: Any) -> list[Tensor]:
    mode = FakeTensorMode()
    there: Any = on_gpu(snn, mode)
    with mode:
        x = torch.empty(*([frames] if frames else []), 3, *shape, device="cuda")
        run = Runner(there, frames or 4, None, options, record=("spikes",))((x,), sequence=bool(frames))
    return [*tensors_in(run.outputs), *run.firing_rate.values(), *run.spikes.values(), *run.recorded["spikes"].values()]


def assert_there(values: list[Tensor]) -> None:
    assert values
    assert {value.device for value in values} == {torch.device("cuda:0")}


@pytest.mark.parametrize("name", zoo.SMALL)
def test_networks(name: str) -> None:
    assert_there(simulated(*converted(name)))


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes(recipe: str) -> None:
    assert_there(simulated(*converted("residual", recipe)))


@pytest.mark.parametrize("name", NEURONS)
def test_neurons(name: str) -> None:
    spec = NEURONS[name].timed(4)
    assert_there(simulated(*converted("chain", Recipe(neuron=spec, family=spec.family.value))))


@pytest.mark.parametrize("options", [{"time_chunk": 1}, {"block": 2}], ids=str)
def test_options(options: dict[str, Any]) -> None:
    assert_there(simulated(*converted("residual"), **options))


def test_frames() -> None:
    assert_there(simulated(*converted("residual"), frames=3))


class OnDevice(Tensor):
    """Stands for a tensor of a GPU: ``cpu`` brings its numbers, all else of it is used here at one's peril."""

    def cpu(self, *args: Any, **options: Any) -> Tensor:
        return self.as_subclass(Tensor)


def test_units_lie_on_the_cpu_wherever_thresholds_do() -> None:
    snn = cx.convert(zoo.SMALL["residual"][0]().eval(), torch.rand(4, *zoo.SMALL["residual"][1]), fold=False,
                     backend="reference", progress=False)  # fmt: skip
    node, site = next(iter(graph.modules_called(snn.body, SpikingSite)))
    site.threshold, site.gain = site.threshold.as_subclass(OnDevice), site.gain.as_subclass(OnDevice)
    context, operator = context_of(snn.body, node), operator_of(snn.body, node)
    assert isinstance(operator, Operator)
    units = [operator.output_unit(context, [], None), *operator.requested_units(context, None)]
    assert [type(unit) for unit in units] == [Tensor] * 2


def test_thresholds_of_caps_and_of_statistics_meet_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[type]()
    share = thresholds._share

    def sharing(model: Any, sites: Any, largest: dict[str, Tensor], trained: Any) -> None:
        seen.extend(map(type, largest.values()))
        share(model, sites, largest, trained)

    monkeypatch.setattr(
        thresholds, "_normalized", lambda model, free, *_: {s.key: torch.ones(()).as_subclass(OnDevice) for s in free}
    )
    monkeypatch.setattr(thresholds, "_share", sharing)
    converted("residual", cx.Recipe(cx.Percentile()), None)
    assert set(seen) == {Tensor}
