"""The demonstration: a trained network becomes a spiking one, beside SpikingJelly's converter and the static limit."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import conversion_ext as cx
from conversion_ext import plots
from conversion_ext.backends.base import available, get_backend
from conversion_ext.data.datasets import Dataset, load
from conversion_ext.data.progress import bar
from conversion_ext.demo import rival
from conversion_ext.demo.networks import resnet_of, weights_of
from conversion_ext.errors import require
from conversion_ext.tables import Report, Sheet, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PLAIN", "Row", "Story", "network", "run", "train"]

# Thresholds per layer and potentials that start at 0, as converters have had them; what the diagnosis looks at.
PLAIN = cx.Recipe(cx.Percentile(99.9, granularity=cx.PerLayer()), cx.IF(v_init=0.0))
RECIPES = ("default", "default-lookahead", "default-copies")
EPOCHS = {"digits": 10, "fashion-mnist": 2, "cifar10": 2}
BATCH = 100
DIAGNOSED = 256  # calibration images, half of which judge


@dataclass(frozen=True)
class Row:
    """One converted network: classes that it decides for after each step [T, N], accuracy [T], and what it costs.

    ``spikes``: per image in T steps; ``seconds``: of the conversion.
    """

    name: str
    predictions: Tensor
    accuracy: Tensor
    latency_steps: int
    spikes: float
    seconds: float


@dataclass(frozen=True, repr=False)
class Story(Report):
    """What the demonstration measured; ``str`` is its table, ``write`` saves the diagnosis of the plain conversion."""

    data: str
    images: int
    T: int
    ann_accuracy: float
    twin_accuracy: float
    rows: tuple[Row, ...]
    diagnosis: cx.Diagnosis
    notes: tuple[str, ...]

    def sheet(self) -> Sheet:
        """Return one row per conversion: accuracy after a few steps, and what it costs."""
        shown = spread(self.T, most=6)
        header = ("accuracy in %", *(f"T={i + 1}" for i in shown), "latency", "spikes per image", "seconds to convert")
        rows = [
            (
                row.name, *(f"{100 * row.accuracy[i]:.2f}" for i in shown), str(row.latency_steps),
                f"{row.spikes:,.0f}", f"{row.seconds:.1f}",
            )
            for row in self.rows
        ]  # fmt: skip
        gaps = [""] * (len(shown) - 1)
        rows.append((f"static limit of T={self.T} (twin)", *gaps, f"{100 * self.twin_accuracy:.2f}", "", "", ""))
        title = f"{self.data}: {self.images} test images, ANN {100 * self.ann_accuracy:.2f} %"
        return Sheet(header, rows, title, self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Return all values as plain data; of predictions their accuracy."""
        plain = super().to_dict()
        for row in plain["rows"]:
            del row["predictions"]
        return plain

    def plot(self) -> Figure:
        """Return accuracy over time, one line per conversion; frameworks that decide the same share theirs."""
        curves: dict[str, list[tuple[float, float]]] = {}
        for i, row in enumerate(self.rows):
            if not any(torch.equal(row.predictions, other.predictions) for other in self.rows[:i]):
                curves[row.name] = [(t, float(a)) for t, a in enumerate(row.accuracy, 1)]
        figure = plots.frontier(curves, "time steps T", ann=self.ann_accuracy)
        legend = figure.axes[0].get_legend()
        assert legend is not None
        legend.remove()
        figure.legend(loc="outside lower center", frameon=False)
        figure.set_size_inches(5.0, 4.6)
        return figure

    def write(self, folder: Path) -> Path:
        """Write report.html (the diagnosis of the plain conversion) and accuracy.png; return the path of the report."""
        folder.mkdir(parents=True, exist_ok=True)
        self.plot().savefig(folder / "accuracy.png", dpi=120)
        return self.diagnosis.html(folder / "report.html")


def network(width: int = 16, classes: int = 10, channels: int = 1) -> nn.Sequential:
    """Return a small convolutional network with BatchNorm for images [N, channels, H, W]; it is not trained."""

    def block(inputs: int, features: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, features, 3, padding=1, bias=False), nn.BatchNorm2d(features), nn.ReLU()]

    return nn.Sequential(
        *block(channels, width),
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
    with bar(None, "train the ANN", progress, epochs * len(loader)) as shown:
        for _ in range(epochs):
            for images, labels in loader:
                loss = nn.functional.cross_entropy(ann(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                shown.update()
                shown.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    ann.eval()


def run(
    data: str | Dataset = "digits",
    backends: Sequence[str] | None = None,
    T: int = 4,
    *,
    weights: Path | None = None,
    recipes: Sequence[str] | None = None,
    images: int = 1000,
    epochs: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Story:
    """Train a network (or read one), convert it in several ways, and measure all of them over ``T`` steps.

    Args:
        data: the name of a data set (``conversion_ext.data.load``) or a data set.
        backends: names; default: every installed framework, or the reference backend without any.
        T: time steps, at least 1.
        weights: state dict of a CIFAR ResNet, which is not trained then.
        recipes: names of recipes of this package; default: those of ``RECIPES``.
        images: how many test images at most.
        epochs: passes over the training part; default: 10 for digits, else 2.
        seed: of initial weights, dropout and batch order.
        progress: show progress bars.
    """
    frameworks, names, state = _checked(data, backends, T, recipes, weights)
    dataset = load(data) if isinstance(data, str) else data
    if state is None:
        torch.manual_seed(seed)
        ann: nn.Module = network(channels=dataset.train.tensors[0].shape[1])
        train(ann, dataset.train, epochs or EPOCHS.get(dataset.name, 2), progress)
    else:
        ann = resnet_of(state)
    measure = _Measure(ann, dataset, T, images, progress)
    rows, notes = measure.rival()
    plain, snn = measure.ours("plain: 99.9 % per layer", PLAIN, frameworks[0])
    rows.append(plain)
    made = [measure.ours(f"{names[0]}, {backend}", names[0], backend) for backend in frameworks]
    rows += [row for row, _ in made]
    notes += _comparison([row for row, _ in made], T)
    rows += [measure.ours(f"{name}, {frameworks[0]}", name, frameworks[0])[0] for name in names[1:]]
    calibration = tuple(part[:DIAGNOSED] for part in dataset.calibration.tensors)
    diagnosis = cx.diagnose(snn, ann, calibration, T)
    ann_accuracy, limit = measure.score(ann), measure.score(cx.twin(made[0][1], T))
    return Story(dataset.name, measure.count, T, ann_accuracy, limit, tuple(rows), diagnosis, tuple(notes))


def _checked(
    data: str | Dataset, backends: Sequence[str] | None, T: int, recipes: Sequence[str] | None, weights: Path | None
) -> tuple[list[str], Sequence[str], dict[str, Tensor] | None]:
    """Return frameworks, recipes and weights; raise for what is not there before anything is trained."""
    require(T >= 1, f"T={T}: the number of time steps must be at least 1.")
    name = data if isinstance(data, str) else data.name
    frameworks = [get_backend(each).name for each in backends or _installed()]
    names = tuple(recipes or RECIPES)
    for each in names:
        cx.recipes.get(each)
    if weights is None:
        return frameworks, names, None
    require(name == "cifar10", f"--weights are those of a CIFAR ResNet, which cannot read {name}; use --data cifar10.")
    state = weights_of(weights)
    resnet_of(state)
    return frameworks, names, state


class _Measure:
    """One trained network and its data: every conversion is made from the same and judged on the same."""

    def __init__(self, ann: nn.Module, data: Dataset, T: int, images: int, progress: bool) -> None:
        self.ann, self.data, self.T, self.progress = ann, data, T, progress
        self.x, self.y = (part[:images] for part in data.test.tensors)
        self.count = len(self.y)

    def rival(self) -> tuple[list[Row], list[str]]:
        """Return a row per setting of SpikingJelly's converter, and why there are none."""
        if "spikingjelly" not in available():
            return [], ["SpikingJelly is not installed, so its converter is not among these."]
        rows: list[Row] = []
        loader = DataLoader(self.data.calibration, batch_size=64)
        for setting in rival.SETTINGS:
            start = time.perf_counter()
            try:
                snn = rival.converted(self.ann, loader, setting)
            except ValueError as error:
                return rows, [f"SpikingJelly's converter: {error}"]
            seconds = time.perf_counter() - start
            outputs, spikes = rival.run(snn, self._batches(f"SpikingJelly {setting}"), self.T)
            rows.append(self._row(f"SpikingJelly {setting}", outputs.argmax(-1), self.T, spikes, seconds))
        return rows, []

    def ours(self, name: str, recipe: str | cx.Recipe, backend: str) -> tuple[Row, Any]:
        """Return a row of a conversion by this package, and the network."""
        start = time.perf_counter()
        images, _ = self.data.calibration.tensors
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Not active on the calibration data")  # which the diagnosis tells
            snn = cx.convert(self.ann, images, recipe=recipe, T=self.T, backend=backend, progress=self.progress)
        seconds = time.perf_counter() - start
        runs = [cx.simulate(snn, batch, self.T) for batch in self._batches(name)]
        predictions = torch.cat([run.outputs.argmax(-1) for run in runs], dim=1)
        spikes = float(torch.cat([run.spikes_per_sample for run in runs]).mean())
        return self._row(name, predictions, runs[0].latency_steps, spikes, seconds), snn

    def score(self, network: nn.Module) -> float:
        """Return the accuracy of a network without time."""
        with torch.no_grad():
            decided = torch.cat([network(batch).argmax(1) for batch in self.x.split(BATCH)])
        return float((decided == self.y).double().mean())

    def _batches(self, name: str) -> Iterator[Tensor]:
        return iter(bar(self.x.split(BATCH), f"simulate {name}", self.progress))

    def _row(self, name: str, predictions: Tensor, latency: int, spikes: float, seconds: float) -> Row:
        return Row(name, predictions, (predictions == self.y).double().mean(1), latency, spikes, seconds)


def _installed() -> list[str]:
    """Return the installed frameworks; the reference backend only when there is none."""
    names = available()
    return [name for name in names if name != "reference"] or names


def _comparison(rows: Sequence[Row], T: int) -> list[str]:
    """Return a sentence on whether the frameworks decided the same, none for one framework."""
    names = [row.name.rpartition(", ")[2] for row in rows]
    differ = [
        f"{names[0]} and {name}: {int((rows[0].predictions != row.predictions).sum())}"
        for name, row in zip(names[1:], rows[1:], strict=True)
        if not torch.equal(rows[0].predictions, row.predictions)
    ]
    if differ:
        images = rows[0].predictions.shape[1]
        return [f"Decisions differ, of {T} steps x {images} images: {'; '.join(differ)}."]
    return (
        [f"{' and '.join(names)} made identical decisions for every image at each T = 1 ... {T}."] if names[1:] else []
    )
