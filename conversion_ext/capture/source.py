"""Lines of the user's source: where a node or an error comes from."""

from __future__ import annotations

import linecache
import os
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

import torch
from torch.fx import Node

__all__ = ["called", "line_of_error", "user_lines"]

_ROOMS = ("capture", "graph", "conversion", "calibration", "data")
_OURS = tuple(str(Path(__file__).parents[1] / room) for room in _ROOMS)
_SKIPPED = (f"{Path(torch.__file__).parent}{os.sep}", "<", *_OURS)
LONGEST = 120  # characters of a line that are quoted
_START = "capture_and_compare"  # what lies further out called the capture and is no part of the network


def called(node: Node, within: str) -> str:
    """Return what a node calls as a path in the user's terms, ``layer1.0.relu`` for a function in ``layer1.0``."""
    if node.op not in ("call_function", "call_method"):
        return str(node.target)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
    return f"{within}.{name}" if within else str(name)


def user_lines(frame: FrameType | None) -> Iterator[str]:
    """Iterate over the source lines of the user's stack, innermost first, as far as the network reaches."""
    while frame is not None and frame.f_code.co_name != _START:
        file = frame.f_code.co_filename
        if not file.startswith(_SKIPPED):
            yield _line(file, frame.f_lineno)
        frame = frame.f_back


def line_of_error(step: TracebackType | None) -> str:
    """Return the user's line in which an error came up, or an empty string."""
    line = ""
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if not file.startswith(_SKIPPED):
            line = _line(file, step.tb_lineno)
        step = step.tb_next
    return line


def _line(file: str, number: int | None) -> str:
    """Return ``net.py:12: x = F.relu(x)``; Python 3.10 knows no number for some instructions of its own."""
    if number is None:
        return Path(file).name
    text = linecache.getline(file, number).strip()
    return f"{Path(file).name}:{number}: {text if len(text) <= LONGEST else text[: LONGEST - 3] + '...'}"
