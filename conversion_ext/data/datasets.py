"""Small real data sets for the demonstration and the tutorials, split once and for all."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from conversion_ext.errors import MissingError, UnknownNameError, optional_import, require

__all__ = ["DATASETS", "Dataset", "load"]

DATASETS = ("digits", "fashion-mnist")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
CACHE = Path.home() / ".cache" / "conversion_ext"
CALIBRATION_IMAGES = 512


@dataclass(frozen=True)
class Dataset:
    """Images [N, 1, H, W] in [0, 1] and labels [N], in three parts.

    ``calibration`` is a part of ``train``; ``test`` shares no image with either.
    """

    name: str
    train: TensorDataset
    calibration: TensorDataset
    test: TensorDataset


def load(name: str) -> Dataset:
    """Load ``"digits"`` (1,797 images 8x8, scikit-learn) or ``"fashion-mnist"`` (70,000 images 28x28).

    The split is the same at every call: digits are shuffled with seed 0 and the last 600 are the test part,
    Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017, arXiv:1708.07747) comes with its own.

    Raises:
        MissingError: a package or file is not there; the sentence says how to get it.
        UnknownNameError: there is no data set of that name.
    """
    require(
        name in DATASETS, f"There is no data set named {name!r}; there are: {', '.join(DATASETS)}.", UnknownNameError
    )
    train, test = _digits() if name == "digits" else _fashion_mnist()
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
