"""The file itself: safetensors with one JSON header of ours and a checksum over every byte."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from torch import Tensor

from conversion_ext.errors import FileError, require

__all__ = ["FORMAT", "read", "read_header", "write"]

FORMAT = 1  # of what is written; what is read are all up to it
OURS, CHECKSUM = "conversion_ext", "sha256"
BLANK = b"0" * 64  # in the place of the checksum while it is computed
LARGEST = 100_000_000  # bytes of a header, as in safetensors
LENGTH = struct.Struct("<Q")


class Header(NamedTuple):
    """The header before the tensors: our JSON, the checksum, and their place in the file."""

    facts: dict[str, Any]
    checksum: bytes
    at: int


def write(path: Path, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write ``facts`` and ``tensors`` to ``path``: all of it, or nothing where that fails."""
    text = json.dumps({"format": FORMAT, **facts}, allow_nan=False)
    content = safetensors.torch.save(tensors, {CHECKSUM: BLANK.decode(), OURS: text})
    at = content.index(BLANK)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content[:at])
            file.write(hashlib.sha256(content).hexdigest().encode())
            file.write(memoryview(content)[at + len(BLANK) :])
        part.replace(path)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror}; name a file in a folder that exists.") from error


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the facts and tensors of the file at ``path``, after its checksum has been compared."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    header = _header(path, content, len(content))
    digest = hashlib.sha256(content[: header.at] + BLANK)
    digest.update(memoryview(content)[header.at + len(BLANK) :])
    require(
        digest.hexdigest().encode() == header.checksum,
        f"{path} was changed or damaged after it was saved, its checksum does not fit; save the network again.",
        FileError,
    )
    return header.facts, safetensors.torch.load(content)


def read_header(path: Path) -> dict[str, Any]:
    """Return the facts of the file at ``path`` without reading its tensors, so without comparing the checksum."""
    try:
        with path.open("rb") as file:
            start = file.read(LENGTH.size)
            length = LENGTH.unpack(start)[0] if len(start) == LENGTH.size else 0
            return _header(path, start + file.read(min(length, LARGEST)), path.stat().st_size).facts
    except OSError as error:
        raise _unreadable(path, error) from error


def _header(path: Path, content: bytes, size: int) -> Header:
    """Return what the first bytes of a file of ``size`` bytes hold."""
    foreign = FileError(f"{path} is not a file that conversion_ext.save wrote, or only a part of one.")
    length = LENGTH.unpack(content[: LENGTH.size])[0] if len(content) >= LENGTH.size else 0
    if not 0 < length <= min(LARGEST, size - LENGTH.size):
        raise foreign
    text = content[LENGTH.size : LENGTH.size + length]
    try:
        metadata = json.loads(text)["__metadata__"]
        facts, checksum = json.loads(metadata[OURS]), metadata[CHECKSUM].encode()
        version, writer = facts["format"], facts["versions"].get("conversion-ext", "of an unknown version")
        known = isinstance(version, int) and version >= 1
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise foreign from error
    at = text.find(checksum)
    if at < 0 or len(checksum) != len(BLANK) or not known:
        raise foreign
    require(
        version <= FORMAT,
        f"{path} is in format {version}, written by conversion_ext {writer}, and this release reads formats up to "
        f"{FORMAT}; update conversion_ext.",
        FileError,
    )
    return Header(facts, checksum, LENGTH.size + at)


def _unreadable(path: Path, error: OSError) -> FileError:
    return FileError(f"{path} cannot be read: {error.strerror}; name a file that conversion_ext.save wrote.")
