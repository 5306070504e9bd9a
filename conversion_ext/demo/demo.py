"""The demonstration: train a small network, convert it for each framework, compare accuracy over time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

import conversion_ext as cx
from conversion_ext.backends.base import available, get_backend
from conversion_ext.data.datasets import Dataset, load
from conversion_ext.errors import optional_import, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["NORMALIZERS", "Curve", "Report", "network", "run", "train"]

# Both per channel, so that nothing differs but the percentile.
NORMALIZERS = {
    "maximum": cx.Maximum(granularity=cx.PerChannel()),
    "99.9 percentile": cx.Percentile(99.9, granularity=cx.PerChannel()),
}
EPOCHS = {"digits": 10, "fashion-mnist": 2}
TEST_IMAGES = 1000


@dataclass(frozen=True)
class Curve:
    """One converted network over time: its predictions [T, N], accuracy [T] and mean spikes per neuron and step."""

    backend: str
    normalizer: str
    predictions: Tensor
    accuracy: Tensor
    firing_rate: float

    def latency(self, ann_accuracy: float) -> int | None:
        """Return the first T whose accuracy is within one point of ``ann_accuracy``, or None."""
        reached = self.accuracy >= ann_accuracy - 0.01 - 1e-9  # 1e-9: one point short by rounding alone counts
        return int(reached.nonzero()[0]) + 1 if reached.any() else None


@dataclass(frozen=True)
class Report:
    """What the demonstration found; ``str(report)`` is its table."""

    data: str
    test_images: int
    ann_accuracy: float
    curves: tuple[Curve, ...]

    @property
    def T(self) -> int:
        """The number of time steps simulated."""
        return len(self.curves[0].accuracy)

    def __str__(self) -> str:
        return "\n".join([*self._lines(), "", self._comparison()])

    def _lines(self) -> Iterator[str]:
        shown = self._shown()
        yield f"{self.data}: accuracy in % on {self.test_images} test images, ANN {100 * self.ann_accuracy:.2f}"
        yield ""
        yield (
            f"{'framework':13}{'normalizer':17}"
            + "".join(f"{f'T={t}':>7}" for t in shown)
            + f"{'firing rate':>13}{'within 1 point from':>21}"
        )
        for curve in self.curves:
            latency = curve.latency(self.ann_accuracy)
            yield (
                f"{curve.backend:13}{curve.normalizer:17}"
                + "".join(f"{100 * curve.accuracy[t - 1]:7.2f}" for t in shown)
                + f"{curve.firing_rate:13.4f}"
                + f"{f'T={latency}' if latency else f'not by T={self.T}':>21}"
            )

    def _shown(self) -> list[int]:
        """Return the steps shown: 1, 2, 4, ... up to T."""
        return [2**k for k in range(self.T.bit_length())]

    def _comparison(self) -> str:
        """Return a sentence on whether the frameworks predicted the same."""
        names = list(dict.fromkeys(curve.backend for curve in self.curves))
        if len(names) == 1:
            return f"One framework compared with nothing: {names[0]}."
        differ = [
            f"{a.backend} and {b.backend}, {a.normalizer}: {int((a.predictions != b.predictions).sum())}"
            for i, a in enumerate(self.curves)
            for b in self.curves[i + 1 :]
            if a.normalizer == b.normalizer and not torch.equal(a.predictions, b.predictions)
        ]
        if differ:
            return f"Predictions differ, of {self.T} steps x {self.test_images} images: {'; '.join(differ)}."
        return f"{' and '.join(names)} made identical predictions for every image at each T = 1 ... {self.T}."

    def plot(self, path: Path) -> None:
        """Save accuracy over time steps, one line per framework and normalizer, as a picture."""
        figure = optional_import("matplotlib.figure", "matplotlib").Figure(figsize=(7, 4.2), layout="constrained")
        axes: Axes = figure.add_subplot()
        steps = range(1, self.T + 1)
        for i, curve in enumerate(self.curves):
            # Frameworks that agree lie on top of each other: wide below, thin and dashed above.
            first = curve.backend == self.curves[0].backend
            color = f"C{list(NORMALIZERS).index(curve.normalizer)}"
            style = {"linewidth": 5, "alpha": 0.4} if first else {"linewidth": 1.5, "linestyle": "--", "zorder": 3 + i}
            axes.plot(steps, 100 * curve.accuracy, color=color, label=f"{curve.backend}, {curve.normalizer}", **style)
        axes.axhline(100 * self.ann_accuracy, color="black", linewidth=1, linestyle=":", label="ANN")
        shown = self._shown()
        axes.set_xscale("log", base=2)
        axes.set_xticks(shown, labels=[str(t) for t in shown])
        axes.set_xlabel("time steps T")
        axes.set_ylabel(f"accuracy on {self.data} (%)")
        axes.legend()
        figure.savefig(path, dpi=120)


def network(width: int = 16, classes: int = 10) -> nn.Sequential:
    """Return a small convolutional network with BatchNorm for images [N, 1, H, W]; it is not trained."""

    def block(channels: int, features: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, features, 3, padding=1, bias=False), nn.BatchNorm2d(features), nn.ReLU()]

    return nn.Sequential(
        *block(1, width),
        *block(width, width),
        nn.AvgPool2d(2),
        *block(width, 2 * width),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8 * width, classes),
    )


def train(ann: nn.Module, data: TensorDataset, epochs: int, progress: bool = True) -> None:
    """Train ``ann`` in place with Adam and a one-cycle learning rate; leave it in eval mode."""
    loader = DataLoader(data, batch_size=64, shuffle=True)
    optimizer = torch.optim.Adam(ann.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=epochs * len(loader))
    ann.train()
    with tqdm(total=epochs * len(loader), desc="train the ANN", disable=not progress) as bar:
        for _ in range(epochs):
            for images, labels in loader:
                loss = nn.functional.cross_entropy(ann(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    ann.eval()


def run(
    data: str | Dataset = "digits",
    backends: Sequence[str] | None = None,
    T: int = 64,
    *,
    epochs: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Train on ``data``, convert with each normalizer for each backend, and simulate ``T`` steps.

    Args:
        data: the name of a data set (``conversion_ext.data.datasets.load``) or a data set.
        backends: names; default: every installed framework, or the reference backend without any.
        T: time steps, at least 1.
        epochs: passes over the training part; default: 10 for digits, 2 for Fashion-MNIST.
        seed: of initial weights, dropout and batch order.
        progress: show progress bars.
    """
    require(T >= 1, f"T={T}: the number of time steps must be at least 1.")
    frameworks = [get_backend(name).name for name in backends or _installed()]  # raises before the training
    dataset = load(data) if isinstance(data, str) else data
    torch.manual_seed(seed)
    ann = network()
    train(ann, dataset.train, epochs or EPOCHS.get(dataset.name, 2), progress)
    images, labels = (part[:TEST_IMAGES] for part in dataset.test.tensors)
    with torch.inference_mode():
        ann_accuracy = (ann(images).argmax(1) == labels).float().mean().item()
    curves = [
        _curve(ann, dataset, backend, normalizer, T, progress) for backend in frameworks for normalizer in NORMALIZERS
    ]
    return Report(dataset.name, len(labels), ann_accuracy, tuple(curves))


def _installed() -> list[str]:
    """Return the installed frameworks; the reference backend only when there is none."""
    names = available()
    return [name for name in names if name != "reference"] or names


def _curve(ann: nn.Module, data: Dataset, backend: str, normalizer: str, T: int, progress: bool) -> Curve:
    """Convert and simulate with one normalizer on one backend."""
    calibration, _ = data.calibration.tensors
    recipe = cx.Recipe(normalizer=NORMALIZERS[normalizer])
    snn = cx.convert(ann, calibration, recipe=recipe, backend=backend, progress=progress)
    images, labels = (part[:TEST_IMAGES] for part in data.test.tensors)
    predictions: list[Tensor] = []
    spikes = neurons = 0.0
    for batch in tqdm(images.split(100), desc=f"simulate {backend}, {normalizer}", disable=not progress):
        simulation = cx.simulate(snn, batch, T)
        predictions.append(simulation.outputs.argmax(-1))
        spikes += sum(rate.double().sum().item() for rate in simulation.firing_rate.values())
        neurons += sum(rate.numel() for rate in simulation.firing_rate.values())
    predicted = torch.cat(predictions, dim=1)
    return Curve(backend, normalizer, predicted, (predicted == labels).double().mean(dim=1), spikes / neurons)
