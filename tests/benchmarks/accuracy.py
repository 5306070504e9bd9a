"""Accuracy over time beside SpikingJelly 2.0's rate recipe: ``python -m tests.benchmarks.accuracy``.

One trained network, one calibration set, the same test images for all; SpikingJelly with ``max``, ``99.9%`` and, its
best here, channel-wise 99.9 % with half-threshold neurons; read out, as ours, by the mean output current.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.ann2snn import Converter, RateCodingRecipe
from torch import Tensor, nn
from torch.utils.data import DataLoader

import conversion_ext as cx
from conversion_ext.data.datasets import Dataset, load
from conversion_ext.demo.demo import network, train

AT = (1, 2, 4, 8, 16, 32, 64)


def ours(ann: nn.Module, loader: DataLoader, recipe: cx.Recipe) -> Callable[[Tensor], Tensor]:
    """Return decoded outputs [len(AT), N, classes] of our conversion."""
    snn = cx.convert(ann, loader, recipe=recipe, backend="spikingjelly", progress=False)
    return lambda x: cx.simulate(snn, x, AT[-1], at=AT).outputs


def spikingjelly(
    ann: nn.Module, loader: DataLoader, at: Sequence[int] = AT, **options: object
) -> Callable[[Tensor], Tensor]:
    """Return decoded outputs [len(at), N, classes] of SpikingJelly's conversion."""
    snn = Converter(RateCodingRecipe(loader, **options)).convert(ann).eval()  # type: ignore[arg-type]

    def run(x: Tensor) -> Tensor:
        functional.reset_net(snn)
        total, kept = torch.zeros(()), []
        with torch.no_grad():
            for t in range(1, at[-1] + 1):
                total = total + snn(x)
                if t in at:
                    kept.append(total / t)
        return torch.stack(kept)

    return run


def contenders(ann: nn.Module, loader: DataLoader) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Yield (name, run) of every conversion."""
    yield "SpikingJelly max", spikingjelly(ann, loader, mode="max")
    yield "SpikingJelly 99.9%", spikingjelly(ann, loader, mode="99.9%")
    yield (
        "SpikingJelly 99.9% channel, half",
        spikingjelly(ann, loader, mode="99.9%", channel_wise=True, half_threshold=True),
    )
    yield "ours, maximum per layer", ours(ann, loader, cx.Recipe(cx.Maximum()))
    yield "ours, 99.9% per layer", ours(ann, loader, cx.Recipe(cx.Percentile(99.9, granularity=cx.PerLayer())))
    yield "ours, default", ours(ann, loader, cx.recipes.for_steps("default", None))


def table(ann: nn.Module, data: Dataset, images: int) -> Iterator[str]:
    """Yield the rows of a markdown table."""
    x, y = (part[:images] for part in data.test.tensors)
    with torch.no_grad():
        right = (ann(x).argmax(1) == y).double().mean().item()
    yield f"ANN {100 * right:.2f} % on {len(y)} test images of {data.name}; {len(data.calibration)} calibration images"
    yield ""
    yield "| conversion | " + " | ".join(f"T={t}" for t in AT) + " |"
    yield "|---|" + "---|" * len(AT)
    loader = DataLoader(data.calibration, batch_size=64)
    for name, run in contenders(ann, loader):
        decided = torch.cat([run(part).argmax(2) for part in x.split(200)], dim=1)
        accuracy = (decided == y).double().mean(1)
        yield f"| {name} | " + " | ".join(f"{100 * a:.2f}" for a in accuracy.tolist()) + " |"


def main() -> None:
    """Train, convert and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits", choices=("digits", "fashion-mnist"))
    parser.add_argument("--images", type=int, default=10_000)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    data = load(arguments.data)
    ann = network()
    train(ann, data.train, epochs=10 if arguments.data == "digits" else 2)
    for line in table(ann.eval(), data, arguments.images):
        print(line)


if __name__ == "__main__":
    main()
