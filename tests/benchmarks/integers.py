"""Accuracy in integers beside float32: ``python -m tests.benchmarks.integers [NETWORK ...] [--T 8] [--weight-bits 4]``.

On the first 2,000 training images of Fashion-MNIST that were held out from training; 1,024 others calibrate. Rows are
``weight bits / state bits``; 32 bits of state run in float64. Columns: accuracy in %, potentials per image that stopped
at the end of their width, CPU seconds beside float32.
"""

from __future__ import annotations

import argparse
import time

import torch

import conversion_ext as cx
from conversion_ext.data import load
from conversion_ext.integer.conversion import integers
from conversion_ext.integer.description import overflows
from conversion_ext.network.spiking_network import SpikingNetwork
from tests.benchmarks.hybrid import of_snn
from tests.benchmarks.train import HELD_OUT, trained

WIDTHS = ((8, 32), (8, 24), (8, 16), (4, 24), (4, 16))


def main() -> None:
    """Print a row per network and width."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["vgg", "resnet20"])
    parser.add_argument("--T", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--weight-bits", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--images", type=int, default=2000)
    arguments = parser.parse_args()
    images, labels = load("fashion-mnist").train.tensors
    first = len(images) - HELD_OUT
    calibration, x, y = images[:1024], images[first:][: arguments.images], labels[first:][: arguments.images]
    for name in arguments.networks:
        for T in arguments.T:
            snn = cx.convert(trained(name), calibration, T=T, backend="reference", progress=False)
            right, unit = judge(snn, x, y, T)
            print(f"| {name}, T={T} | float32 | {right:.2f} | - | 1 |", flush=True)
            for weight, state in (widths for widths in WIDTHS if widths[0] in arguments.weight_bits):
                whole = state > 24
                dtype = torch.float64 if whole else torch.float32
                net = snn.double() if whole else snn.float()
                found = integers(net, calibration.to(dtype), weight_bits=weight, state_bits=state, overflow="saturate")
                right, seconds = judge(found, x.to(dtype), y, T)
                held = sum(overflows(found).values()) / len(x)
                print(
                    f"| {name}, T={T} | {weight} / {state} | {right:.2f} | {held:.0f} | {seconds / unit:.1f} |",
                    flush=True,
                )


def judge(snn: SpikingNetwork, x: torch.Tensor, y: torch.Tensor, T: int) -> tuple[float, float]:
    """Return the accuracy after T steps in per cent, and the CPU seconds that it took."""
    began = time.process_time()
    return 100 * of_snn(snn, T)(x, y), time.process_time() - began


if __name__ == "__main__":
    main()
