"""NeuroBench's metrics are ours where they mean the same, on the same images and steps."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import conversion_ext as cx

pytest.importorskip("neurobench")
pytest.importorskip("snntorch")
pytestmark = pytest.mark.filterwarnings("ignore")  # what NeuroBench imports warns
T = 16


def measured(
    recipe: str | cx.Recipe, backend: str, capsys: Any
) -> tuple[dict[str, Any], Any, torch.Tensor, torch.Tensor]:
    from conversion_ext.neurobench import model

    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5)
    ).eval()  # fmt: skip
    x = torch.rand(32, 1, 8, 8)
    with torch.no_grad():
        y = ann(x).argmax(1)
    snn = cx.convert(ann, x, recipe=recipe, backend=backend, progress=False)
    static, workload = (importlib.import_module(f"neurobench.metrics.{kind}") for kind in ("static", "workload"))
    names = ("ClassificationAccuracy", "ActivationSparsity", "SynapticOperations", "MembraneUpdates")
    metrics = [[static.Footprint], [getattr(workload, name) for name in names]]
    benchmark = importlib.import_module("neurobench.benchmarks").Benchmark
    loader = DataLoader(TensorDataset(x, y), 16)
    result = benchmark(model(snn, T), loader, [], [lambda steps: steps.sum(1).argmax(1)], metrics).run(verbose=False)
    capsys.readouterr()
    return result, snn, x, y


@pytest.mark.parametrize("backend", ["reference", "spikingjelly", "snntorch"])
def test_metrics_agree(backend: str, capsys: Any) -> None:
    result, snn, x, y = measured(cx.Recipe(), backend, capsys)
    counted, run = cx.synops(snn, x, T), cx.simulate(snn, x, T=T)
    operations = result["SynapticOperations"]
    assert operations["Effective_ACs"] == pytest.approx(counted.synops)
    assert result["ClassificationAccuracy"] == pytest.approx(float((run.output.argmax(1) == y).float().mean()))
    neurons = sum(rate[0].numel() for rate in run.firing_rate.values())
    spikes = sum(float(rate.sum()) for rate in run.firing_rate.values()) / len(x)
    assert result["ActivationSparsity"] == pytest.approx(1 - spikes / neurons)
    assert result["MembraneUpdates"] == pytest.approx(neurons * T)
    # None of these numbers is what an empty network, or one that never fires, would give.
    assert counted.synops > 100
    assert 0.05 < spikes / neurons < 0.9
    assert 0 < result["ActivationSparsity"] < 1
    assert neurons == 8 * 4 * 4 + 8 * 2 * 2
    # NeuroBench counts the image's layer at every step; its current is constant, so here it is run once.
    image = next(layer.analog_macs for layer in counted.layers if layer.analog_macs)
    assert operations["Effective_MACs"] == pytest.approx(T * image)


def test_membranes_of_the_last_batch_are_no_memory_of_the_network(capsys: Any) -> None:
    result, snn, _, _ = measured(cx.Recipe(), "snntorch", capsys)
    weights = sum(p.numel() * p.element_size() for p in snn.parameters())
    assert weights <= result["Footprint"] < weights + 512


def test_wrong_requests() -> None:
    from conversion_ext.neurobench import model

    with pytest.raises(TypeError, match="pass what conversion_ext.convert returned"):
        model(nn.ReLU())  # type: ignore[arg-type]
