"""Steps and accuracy of early exit for a stated loss of 0.1 points: ``python -m tests.benchmarks.early_exit``.

The last 5,000 training images of Fashion-MNIST, which no network was trained on, are halved at random 20 times: one
half calibrates ``Confidence``, the other judges. Cells: mean steps as a share of T, and the mean and (largest) loss in
points of accuracy. Nothing is simulated twice: what a rule would do is read from the outputs of all T steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

import conversion_ext as cx
from conversion_ext.data import load
from tests.benchmarks.train import HELD_OUT, trained

LOSS, EVERY, HALVINGS = 0.001, (1, 2, 4), 20


def trade(outputs: Tensor, y: Tensor, every: int) -> str:
    """Return the share of the steps [T, N, classes] that are taken, and what that loses."""
    generator, shares, losses = torch.Generator().manual_seed(0), list[float](), list[float]()
    for _ in range(HALVINGS):
        calibrate, judge = torch.randperm(len(y), generator=generator).chunk(2)
        rule = cx.Confidence.calibrate(outputs[:, calibrate], y[calibrate], LOSS, every)
        steps, seen, labels = rule.steps(outputs[:, judge]), outputs[:, judge], y[judge]
        left = seen[steps - 1, torch.arange(len(judge))].argmax(1)
        shares.append(float(steps.double().mean()) / len(outputs))
        losses.append(float(((seen[-1].argmax(1) == labels).double() - (left == labels).double()).mean()))
    return f"{sum(shares) / HALVINGS:.2f}, {100 * sum(losses) / HALVINGS:.2f} ({100 * max(losses):.2f})"


def main() -> None:
    """Print the table."""
    images, labels = load("fashion-mnist").train.tensors
    x, y = images[-HELD_OUT:], labels[-HELD_OUT:]
    print(f"| | {' | '.join(f'`every={every}`' for every in EVERY)} |\n|---|{'---|' * len(EVERY)}")
    for T in (32, 16):
        for name in ("vgg", "resnet20"):
            snn = cx.convert(trained(name), list(images[:1024].split(256)), T=T, backend="reference", progress=False)
            outputs = torch.cat([cx.simulate(snn, part, T).outputs for part in x.split(250)], 1)
            print(f"| {name}, T = {T} | {' | '.join(trade(outputs, y, every) for every in EVERY)} |", flush=True)


if __name__ == "__main__":
    main()
