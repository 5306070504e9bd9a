"""Train the benchmark networks on Fashion-MNIST: ``python tests/benchmarks/train.py [NETWORK ...] [--epochs 3]``.

The last 5,000 training images are held out: benchmarks develop on them and see the test images once. Weights go to
``tests/benchmarks/checkpoints``. Transformers were trained with ``--rate 2e-3``, vit for 6
epochs and swin for 2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from conversion_ext.data import load
from tests.benchmarks.attention_networks import TRANSFORMERS
from tests.benchmarks.networks import NETWORKS

CHECKPOINTS = Path(__file__).parent / "checkpoints"
HELD_OUT = 5000


def train(name: str, epochs: int, seed: int = 0, batch: int = 128, rate: float = 0.1) -> tuple[nn.Module, float]:
    """Return the trained network and its accuracy on the held-out images."""
    torch.manual_seed(seed)
    images, labels = load("fashion-mnist").train.tensors
    network = (NETWORKS | TRANSFORMERS)[name]().to(memory_format=torch.channels_last)
    if name in TRANSFORMERS:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.05)
    else:
        optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    count = len(images) - HELD_OUT
    steps = epochs * (count // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.2)
    for _ in range(epochs):
        order = torch.randperm(count)[: count // batch * batch].view(-1, batch)
        for index in tqdm(order, desc=name, mininterval=30):
            x = images[index]
            flip = torch.rand(batch, 1, 1, 1) < 0.5
            x = torch.where(flip, x.flip(3), x).to(memory_format=torch.channels_last)
            loss = F.cross_entropy(network(x), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    return network, accuracy(network, images[-HELD_OUT:], labels[-HELD_OUT:])


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of images classified right."""
    right = [(network(x).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return int(torch.stack(right).sum()) / len(labels)


def trained(name: str) -> nn.Module:
    """Return a network with its committed weights, in evaluation mode."""
    network = (NETWORKS | TRANSFORMERS)[name]()
    network.load_state_dict(torch.load(CHECKPOINTS / f"{name}.pt", weights_only=True))
    return network.eval()


def main() -> None:
    """Train the networks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.1, help="the largest learning rate")
    arguments = parser.parse_args()
    CHECKPOINTS.mkdir(exist_ok=True)
    for name in arguments.networks:
        network, held_out = train(name, arguments.epochs, rate=arguments.rate)
        torch.save({k: v.contiguous() for k, v in network.state_dict().items()}, CHECKPOINTS / f"{name}.pt")
        print(f"{name}: {held_out:.4f} on {HELD_OUT} held-out training images after {arguments.epochs} epochs")


if __name__ == "__main__":
    main()
