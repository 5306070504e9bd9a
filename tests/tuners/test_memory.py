"""Memory that is free goes back to the system, systems that do not tell are left alone, a full disk is named."""

from __future__ import annotations

import subprocess
import sys

import pytest

from conversion_ext.tuners import memory

GIVES_BACK = """
import torch
from conversion_ext.tuners import memory
from conversion_ext.tuners.tensor_store import TensorStore
MIB = 1 << 20
torch.ones(30 * MIB // 4).sum()  # once that is freed, the C library keeps what is smaller
with TensorStore(budget=64 * MIB) as store:
    start, freed = memory.resident(), []
    for part in range(200):
        freed.append(torch.ones(2 * MIB // 4))
        store[part] = torch.ones(MIB // 16)  # lives on between those that are freed
    most = memory.resident() - start
    freed.clear()
    store.give_back()
    print(most // MIB, (memory.resident() - start) // MIB, all(bool((store[part] == 1).all()) for part in range(200)))
"""
GROWS = """
import resource, torch
from conversion_ext.tuners import memory
from conversion_ext.tuners.tensor_store import TensorStore
MIB = 1 << 20
torch.ones(30 * MIB // 4).sum()
with TensorStore(budget=32 * MIB) as store:
    start, most = memory.resident(), 0
    for wave in range(1, 21):  # each leaves holes that are too small for the next
        passing = []
        for part in range(10):
            passing.append(torch.ones(wave * MIB // 4))
            store[wave, part] = torch.ones(MIB // 64)
            most = max(most, memory.resident() - start)
        passing.clear()
    print(most // MIB)
"""
TAKES = """
import torch
from conversion_ext.tuners import memory
start = memory.resident()
kept = torch.ones(64 << 18)
print((memory.resident() - start) >> 20)
"""
FULL = """
import resource, signal, torch
import conversion_ext as cx
from conversion_ext.tuners.tensor_store import TensorStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the system then refuses to write, as it does where a disk is full
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    with TensorStore(budget=0) as store:
        store["small"] = torch.ones(100)
        store["large"] = torch.ones(1 << 20)
except cx.CalibrationError as error:
    print(error)
"""


def printed(script: str) -> list[str]:
    """Return what a fresh process prints, whose memory no other test has used."""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return found.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_store_gives_back_what_lay_between_the_tensors_that_it_keeps():
    most, left, kept = printed(GIVES_BACK)
    assert int(most) > 400
    assert int(left) < 150
    assert kept == "True"


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_store_gives_back_while_it_fills():
    (most,) = printed(GROWS)
    assert int(most) < 270  # 200 of them in use; without it they are 340


@pytest.mark.skipif(sys.platform != "linux", reason="limits what Linux writes")
def test_a_full_disk_is_named():
    message = " ".join(printed(FULL))
    assert "could not write there" in message
    assert "TMPDIR" in message


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_memory_is_what_tensors_take():
    (taken,) = printed(TAKES)
    assert 60 < int(taken) < 80


def test_other_systems_are_not_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("asked the C library"))
    assert memory.resident() == 0
    memory.trim()
