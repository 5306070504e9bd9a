"""What onnxruntime computes of an exported network is what torch computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.errors import UnsupportedError
from conversion_ext.exchange.onnx_export import Step, to_onnx
from conversion_ext.neurons import SignedIF

runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter's own deprecations
T = 12


def network(pool: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, 1, 1), nn.ReLU(), pool or nn.AvgPool2d(2), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("recipe", [cx.Recipe(), cx.Recipe(neuron=SignedIF(), family="signed")], ids=["IF", "SignedIF"])
def test_one_step_run_for_many(recipe: cx.Recipe, tmp_path: Path) -> None:
    x = torch.rand(4, 1, 8, 8)
    snn = cx.convert(network(), x, recipe=recipe, progress=False, backend="reference")
    session = runtime.InferenceSession(str(to_onnx(snn, x, tmp_path / "step.onnx")))
    names = [node.name for node in session.get_inputs()]
    state = [part.numpy() for part in Step(snn).start(x)]
    total = np.zeros((4, 5), np.float32)
    for _ in range(T):
        y, *state = session.run(None, dict(zip(names, [x.numpy(), *state], strict=True)))
        total += y
    np.testing.assert_allclose(total / T, cx.simulate(snn, x, T=T).output.numpy(), rtol=0, atol=1e-5)


def test_the_twin(tmp_path: Path) -> None:
    x = torch.rand(4, 1, 8, 8)
    snn = cx.convert(network(nn.MaxPool2d(2)), x, progress=False, backend="reference")
    session = runtime.InferenceSession(str(to_onnx(snn, x, tmp_path / "twin.onnx", T=T)))
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(y, cx.twin(snn, T)(x).numpy(), rtol=0, atol=1e-5)


def test_states_that_are_no_potentials_are_refused_by_name(tmp_path: Path) -> None:
    x = torch.rand(4, 1, 8, 8)
    snn = cx.convert(network(nn.MaxPool2d(2)), x, progress=False, backend="reference")
    with pytest.raises(UnsupportedError, match=r"SpikingMaxPool2d remembers more than potentials"):
        to_onnx(snn, x, tmp_path / "step.onnx")


def test_several_neurons_for_an_activation_are_refused_as_a_step_and_written_as_a_twin(tmp_path: Path) -> None:
    x = torch.rand(4, 1, 8, 8)
    snn = cx.convert(network(), x, recipe="default-copies", T=4, progress=False, backend="reference")
    with pytest.raises(UnsupportedError, match="several neurons"):
        to_onnx(snn, x, tmp_path / "step.onnx")
    session = runtime.InferenceSession(str(to_onnx(snn, x, tmp_path / "twin.onnx", T=4)))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), cx.twin(snn, 4)(x), rtol=1e-4, atol=1e-5)
