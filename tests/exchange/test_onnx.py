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


@pytest.mark.parametrize(
    "recipe",
    [cx.Recipe(neuron=cx.IF(floor=-0.5, strict=True)), cx.Recipe(neuron=SignedIF(), family="signed")],
    ids=["IF", "SignedIF"],
)
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


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.a(x) + self.b(y)))


class TwoOutputs(TwoInputs):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        hidden = torch.relu(self.a(x))
        return {"class": self.head(hidden), "hidden": hidden}


@pytest.mark.parametrize("steps", [None, T])
def test_several_inputs_or_outputs_are_refused(steps: int | None, tmp_path: Path) -> None:
    x, y = torch.rand(8, 4), torch.rand(8, 3)
    two = cx.convert(TwoInputs(), [(x, y)], forward=lambda m, batch: m(*batch), backend="reference", progress=False)
    for snn in (two, cx.convert(TwoOutputs(), x, backend="reference", progress=False)):
        with pytest.raises(UnsupportedError, match=r"with one input, a tensor x \[N, ...\], and one output"):
            to_onnx(snn, x, tmp_path / "a.onnx", T=steps)
    assert not (tmp_path / "a.onnx").exists()


def test_look_ahead_is_named(tmp_path: Path) -> None:
    x = torch.rand(4, 1, 8, 8)
    snn = cx.convert(network(), x, recipe="default-lookahead", T=4, progress=False, backend="reference")
    with pytest.raises(UnsupportedError, match=r"LookAhead remembers more than potentials"):
        to_onnx(snn, x, tmp_path / "step.onnx")


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
