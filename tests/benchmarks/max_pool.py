"""Which max-pool? Accuracy over time of each method on trained networks: ``python -m tests.benchmarks.max_pool``.

ResNet-20 and Inception-like networks on Fashion-MNIST (``train.py`` made the weights), 1,024 calibration images from
the training set, the first 2,000 test images, thresholds at the 99.9th percentile per channel. SpikingJelly's stock
pool is the method "instant".
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.data import load
from tests.benchmarks.train import trained

AT = (8, 16, 32, 64, 128, 256)
METHODS = ("count", "fir", "average", "exponential", "instant")


def accuracy(snn: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """Return accuracy after the steps AT."""
    return cx.evaluate(
        snn, list(zip(x.split(50), y.split(50), strict=True)), AT[-1], at=AT, progress=True
    ).accuracy.tolist()


def main() -> None:
    """Convert with every method and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["resnet20", "inception"])
    parser.add_argument("--images", type=int, default=2000)
    arguments = parser.parse_args()
    data = load("fashion-mnist")
    x, y = (part[: arguments.images] for part in data.test.tensors)
    calibration = data.train.tensors[0][:1024]
    print("| network | ANN | max-pool | " + " | ".join(f"T={t}" for t in AT) + " |")
    print("|---|---|---|" + "---|" * len(AT))
    for name in arguments.networks:
        ann = trained(name)
        with torch.no_grad():
            reference = (torch.cat([ann(part) for part in x.split(500)]).argmax(1) == y).double().mean().item()
        for method in METHODS:
            recipe = cx.Recipe(max_pool=method)
            snn = cx.convert(ann, list(calibration.split(256)), recipe=recipe, backend="reference", progress=False)
            row = " | ".join(f"{100 * a:.2f}" for a in accuracy(snn, x, y))
            print(f"| {name} | {100 * reference:.2f} | {method} | {row} |", flush=True)


if __name__ == "__main__":
    main()
