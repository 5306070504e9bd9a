"""What every test gets: fixed seeds, one thread, and the marker ``gpu`` obeyed."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")  # no test opens a window


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    # Sums split over threads differ in the last bit; laws that say "bit-equal" need one order.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
