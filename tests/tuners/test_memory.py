"""Memory that is free goes back to the system, and systems that do not tell are left alone."""

from __future__ import annotations

import sys

import pytest
import torch

from conversion_ext.tuners import memory
from conversion_ext.tuners.tensor_store import TensorStore

MIB = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_store_gives_back_what_lay_between_the_tensors_that_it_keeps():
    torch.ones(30 * MIB // 4).sum()  # once that is freed, the C library keeps what is smaller
    with TensorStore(budget=64 * MIB) as store:
        start = memory.resident()
        freed = list[torch.Tensor]()
        for part in range(200):
            freed.append(torch.ones(2 * MIB // 4))
            store[part] = torch.ones(MIB // 16)  # lives on between those that are freed
        assert memory.resident() - start > 400 * MIB
        freed.clear()
        store.give_back()
        assert memory.resident() - start < 150 * MIB
        assert all(bool((store[part] == 1).all()) for part in range(200))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_memory_is_what_tensors_take():
    start = memory.resident()
    kept = torch.ones(64 * MIB // 4)
    assert 60 * MIB < memory.resident() - start < 80 * MIB
    assert kept.sum() == kept.numel()


def test_other_systems_are_not_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("asked the C library"))
    assert memory.resident() == 0
    memory.trim()
