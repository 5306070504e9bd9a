"""Small real data sets for the demonstration and the tutorials, split once and for all."""

from __future__ import annotations

import gzip
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from conversion_ext.errors import MissingError, UnknownNameError, optional_import, require

__all__ = ["DATASETS", "Dataset", "decoded", "load"]

DATASETS = ("digits", "fashion-mnist", "cifar10")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
CACHE = Path.home() / ".cache" / "conversion_ext"
DATA = "CONVERSION_EXT_DATA"  # names a folder with data of the user
CALIBRATION_IMAGES = 512
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Dataset:
    """Images [N, C, H, W] and labels [N], in three parts; pixels are in [0, 1], those of CIFAR-10 are normalized.

    ``calibration`` is a part of ``train``; ``test`` shares no image with either.
    """

    name: str
    train: TensorDataset
    calibration: TensorDataset
    test: TensorDataset


def load(name: str) -> Dataset:
    """Load ``"digits"`` (1,797 images 8x8), ``"fashion-mnist"`` (70,000 of 28x28) or ``"cifar10"`` (60,000 of 32x32).

    The split is the same at every call: digits (scikit-learn) are shuffled with seed 0 and the last 600 are the test
    part, the others come with their own. Fashion-MNIST: Xiao, Rasul, Vollgraf, 2017, arXiv:1708.07747. CIFAR-10
    (Krizhevsky, 2009) is read from the folder named by CONVERSION_EXT_DATA, as torchvision keeps it or as JPEG copies
    (``cifar10_jpeg.npz``: arrays train_jpeg, train_offsets, train_labels, and those of test), or torchvision downloads
    it; its pixels are normalized by the mean and deviation of ImageNet, as published networks for it were trained.

    Raises:
        MissingError: a package or file is not there; the message names the command that installs it.
        UnknownNameError: there is no data set of that name.
    """
    require(
        name in DATASETS, f"There is no data set named {name!r}; there are: {', '.join(DATASETS)}.", UnknownNameError
    )
    train, test = {"digits": _digits, "fashion-mnist": _fashion_mnist, "cifar10": _cifar10}[name]()
    images, labels = train
    calibration = TensorDataset(images[:CALIBRATION_IMAGES], labels[:CALIBRATION_IMAGES])
    return Dataset(name, TensorDataset(*train), calibration, TensorDataset(*test))


Part = tuple[Tensor, Tensor]


def _digits(test_images: int = 600) -> tuple[Part, Part]:
    """Return (train, test) of the handwritten digits that scikit-learn ships."""
    digits = optional_import("sklearn.datasets", "scikit-learn").load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:-test_images], order[-test_images:]
    return (images[train], labels[train]), (images[test], labels[test])


def _fashion_mnist() -> tuple[Part, Part]:
    """Return (train, test) from Debian's files, else from torchvision's download."""
    folder = DEBIAN_FASHION_MNIST if DEBIAN_FASHION_MNIST.is_dir() else _download()
    return _idx_part(folder, "train"), _idx_part(folder, "t10k")


def _download() -> Path:
    """Let torchvision download Fashion-MNIST and return the folder with its files."""
    datasets = optional_import("torchvision.datasets", "torchvision")
    try:
        datasets.FashionMNIST(CACHE, download=True)
    except (RuntimeError, OSError) as error:
        message = (
            f"Fashion-MNIST is not in {DEBIAN_FASHION_MNIST} and could not be downloaded ({error}); install Debian's "
            "files with: apt-get install dataset-fashion-mnist, or use the data set 'digits'."
        )
        raise MissingError(message) from error
    return CACHE / "FashionMNIST" / "raw"


def _cifar10() -> tuple[Part, Part]:
    """Return (train, test) from JPEG copies, else from torchvision's files."""
    named = os.environ.get(DATA)
    folder = Path(named) if named else CACHE
    require(folder.is_dir() or not named, f"{DATA}={named}: there is no such folder.", MissingError)
    copies = folder / "cifar10_jpeg.npz"
    if copies.exists():
        with np.load(copies) as held:
            parts = [
                (decoded(held[f"{part}_jpeg"], held[f"{part}_offsets"]), held[f"{part}_labels"])
                for part in ("train", "test")
            ]
    else:
        parts = [_torchvision_cifar10(folder, train, download=not named) for train in (True, False)]
    (train, test) = ((_normalized(pixels), torch.as_tensor(labels).long()) for pixels, labels in parts)
    return train, test


def _torchvision_cifar10(folder: Path, train: bool, download: bool) -> tuple[np.ndarray, Any]:
    datasets = optional_import("torchvision.datasets", "torchvision")
    try:
        part = datasets.CIFAR10(folder, train=train, download=download)
    except (RuntimeError, OSError) as error:
        message = (
            f"CIFAR-10 is not in {folder} and was not downloaded ({error}); name a folder that holds "
            f"cifar-10-batches-py or cifar10_jpeg.npz with the variable {DATA}, or use the data set 'digits'."
        )
        raise MissingError(message) from error
    return part.data.transpose(0, 3, 1, 2), part.targets


def decoded(jpeg: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return images [N, 3, H, W] as bytes, of JPEG files one after the other; ``offsets`` [N+1] tell where."""
    image = optional_import("PIL.Image", "pillow")
    files = [jpeg[a:b].tobytes() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    return np.stack([np.asarray(image.open(io.BytesIO(file)).convert("RGB")) for file in files]).transpose(0, 3, 1, 2)


def _normalized(pixels: np.ndarray) -> Tensor:
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    return torch.from_numpy(np.ascontiguousarray(pixels)).float().div_(255).sub_(mean).div_(std)


def _idx_part(folder: Path, prefix: str) -> Part:
    """Read images and labels of one part in LeCun's idx format."""
    images = _idx(folder / f"{prefix}-images-idx3-ubyte.gz", header=16).reshape(-1, 1, 28, 28)
    labels = _idx(folder / f"{prefix}-labels-idx1-ubyte.gz", header=8)
    return torch.from_numpy(images).float() / 255, torch.from_numpy(labels).long()


def _idx(path: Path, header: int) -> np.ndarray:
    """Read the bytes after the header of a gzipped idx file."""
    if not path.exists():
        message = f"{path} is missing; install the whole data set with: apt-get install dataset-fashion-mnist"
        raise MissingError(message)
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), dtype=np.uint8, offset=header).copy()
