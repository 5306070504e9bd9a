"""On a GPU as on a CPU: every neuron in every framework, conversion, simulation, analysis, training, files.

Everything here needs a CUDA device. Values are double where spikes are compared, so that no sum of another order
decides a spike; data lie on the CPU where they are read in batches, as a loader leaves them.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available, get_backend
from conversion_ext.neurons import Neuron
from tests import zoo
from tests.discovery import currents, values_of

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NEURONS = values_of(Neuron)
RECIPES = [name for name in cx.recipes.names() if name.startswith("default")]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)).double().eval()


def images(samples: int = 24) -> Tensor:
    return torch.rand(samples, 2, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def labelled() -> list[tuple[Tensor, Tensor]]:
    x = images()
    return list(zip(x.split(8), network()(x).argmax(1).split(8), strict=True))


def converted(device: torch.device, backend: str = "spikingjelly", **options: Any) -> Any:
    ann = network().to(device)
    return cx.convert(ann, images().split(8), backend=backend, progress=False, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("name", NEURONS)
def test_neurons_spike_as_on_the_cpu(name: str, backend: str, step_mode: str, dtype: torch.dtype) -> None:
    x_seq = currents().to(dtype)
    spec, home = NEURONS[name].timed(len(x_seq)), get_backend(backend)
    spikes = []
    for device in (torch.device("cpu"), DEVICE):
        neuron = home.neuron(spec).to(device)
        if hasattr(neuron, "step_mode"):
            neuron.step_mode = step_mode
        with torch.no_grad():
            spikes.append(home.run(neuron, x_seq.to(device), spec.v_init).cpu())
    assert torch.equal(*spikes)
    assert spikes[0].abs().sum() > 0


@pytest.mark.parametrize("name", zoo.SMALL)
def test_networks_have_the_thresholds_of_the_cpu(name: str) -> None:
    build, shape = zoo.SMALL[name]
    torch.manual_seed(0)
    ann = build().double().eval()
    x = torch.rand(6, *shape[1:] if len(shape) > 3 else shape).double()
    here, there = (cx.convert(copy.deepcopy(ann).to(d), x, progress=False) for d in (torch.device("cpu"), DEVICE))
    for key, site in here.sites().items():
        assert there.sites()[key].threshold.device.type == DEVICE.type
        torch.testing.assert_close(there.sites()[key].threshold.cpu(), site.threshold, rtol=1e-3, atol=0)


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_convert_and_simulate_as_on_the_cpu(recipe: str, backend: str) -> None:
    here, there = (converted(d, backend, recipe=recipe, T=4) for d in (torch.device("cpu"), DEVICE))
    x = images(6)
    expected = cx.simulate(here, x, 4).output
    for output in (cx.simulate(there, x.to(DEVICE), 4).output, cx.twin(there, 4)(x.to(DEVICE))):
        assert output.device.type == DEVICE.type
        assert output.shape == expected.shape
    found = cx.simulate(there, x.to(DEVICE), 4).output.cpu()
    # A spike more or less, where a sum of another order decides, moves an output by a part of its range.
    assert (found - expected).abs().mean() < 0.1 * (expected.max() - expected.min())


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"weights": "int8"}, {"compile": True}], ids=str)
def test_options_of_a_run(options: dict[str, Any]) -> None:
    snn, x = converted(DEVICE).float(), images(6).float().to(DEVICE)
    plain, other = cx.simulate(snn, x, 32).output, cx.simulate(snn, x, 32, **options).output
    assert (plain - other).abs().max() < 0.2 * (plain.max() - plain.min())


def test_streamed_data_calibrate_as_data_on_the_device() -> None:
    ann = network().to(DEVICE)
    batches = images().split(8)
    streamed, there = (cx.convert(ann, d, T=4, progress=False) for d in (batches, [b.to(DEVICE) for b in batches]))
    ours, theirs = ([*snn.parameters(), *snn.buffers()] for snn in (streamed, there))
    assert ours
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_every_analysis_reads_data_from_the_cpu() -> None:
    ann, snn, data = network().to(DEVICE), converted(DEVICE, T=4), labelled()
    analyses = (cx.evaluate, cx.analysis.forecast, cx.analysis.decompose, cx.analysis.synops)
    for report in (*(run(snn, data, 4, ann=ann) for run in analyses), cx.diagnose(snn, ann, data, 4)):
        assert str(report)


def test_training_stays_on_the_device() -> None:
    snn = converted(DEVICE, T=4)
    result = cx.finetune(snn, labelled(), T=4, epochs=1, progress=False)
    assert all(p.device.type == DEVICE.type for p in snn.parameters())
    assert result is not None


@pytest.mark.parametrize("target", ["cpu", DEVICE.type])
def test_files_load_on_either_device(tmp_path: Path, target: str) -> None:
    snn, x = converted(DEVICE), images(4)
    cx.save(snn, tmp_path / "net.safetensors")
    loaded = cx.load(tmp_path / "net.safetensors", device=target)
    assert {p.device.type for p in loaded.parameters()} == {target}
    expected = cx.simulate(snn, x.to(DEVICE), 8).output.cpu()
    torch.testing.assert_close(cx.simulate(loaded, x.to(target), 8).output.cpu(), expected, rtol=0, atol=1e-9)
