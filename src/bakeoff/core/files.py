"""Atomic, durable file writes: a file is complete or absent, even after kill -9 or a power loss.

A file is written under a temporary name, synced and renamed; then its folder is synced. Standard
library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

PARTIAL_SUFFIX = ".tmp"
"""Suffix of a file that is being written; a leftover with it can be deleted."""


def atomic_write_bytes(path: Path, value: bytes, durable: bool = True) -> None:
    """Write a file completely, or leave the previous one in place.

    ``durable`` syncs it to the disk; turn it off only for files that a crash may lose.
    """
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    with temporary.open("wb") as file:
        file.write(value)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    temporary.replace(path)
    if durable:
        fsync_path(path.parent)


def atomic_write_text(path: Path, text: str, durable: bool = True) -> None:
    """Write a UTF-8 text file like ``atomic_write_bytes``."""
    atomic_write_bytes(path, text.encode("utf-8"), durable)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a library to write; rename it to ``path`` once it is written.

    The temporary name holds the process id, so that several processes may write the same file:
    the last one wins, and each of them is complete. Synced like ``atomic_write_bytes``.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        yield temporary
        fsync_path(temporary)
        temporary.replace(path)
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def fsync_path(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder; its entries are durable with the file
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hex, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
