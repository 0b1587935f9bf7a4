"""Files that are whole or not there: written beside, synced, renamed.

Stands at the bottom, used by both halves, standard library only. A file is renamed once its bytes
are on the disk, and its folder is synced after that: neither kill -9 nor a power loss leaves half
of it under its name.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

PARTIAL_SUFFIX = ".tmp"
"""Ends the name of a file that is being written; one that is left over belongs to nobody."""


def atomic_write_bytes(path: Path, value: bytes) -> None:
    """Write a file whole, or leave what was there."""
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    with temporary.open("wb") as file:
        file.write(value)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_path(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file whole, or leave what was there."""
    atomic_write_bytes(path, text.encode("utf-8"))


def fsync_path(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folder; its names are durable with the file
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
