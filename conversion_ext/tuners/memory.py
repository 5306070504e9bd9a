"""The memory of this process."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["resident", "trim"]


def resident() -> int:
    """Return the bytes of memory that this process takes now; 0 where the system does not tell (other than Linux)."""
    if sys.platform != "linux":
        return 0
    file = os.open("/proc/self/statm", os.O_RDONLY)  # asked for each tensor that is kept: a third of Path.read_text
    try:
        return int(os.read(file, 256).split()[1]) * os.sysconf("SC_PAGE_SIZE")
    finally:
        os.close(file)


def trim() -> None:
    """Give free memory back to the system, where the C library keeps it (glibc).

    It keeps freed tensors of less than 32 MiB for later ones. Where tensors that live on lie in between, a process
    grows to several times what it uses at once.
    """
    if sys.platform == "linux":
        give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if give_back is not None:
            give_back(0)
