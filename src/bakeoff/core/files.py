"""Atomic, durable file writes: a file is complete or absent, even after kill -9 or a power loss.

A file is written under a temporary name, synced and renamed; then its folder is synced. Standard
library only.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bakeoff.core.errors import EnvironmentProblem, first_line

ERROR_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
ERROR_PHRASES = (
    "no space left on device",
    "disk quota exceeded",
    "database or disk is full",
    "(os error 28)",
    "(os error 122)",
)
"""Messages, in lower case, of libraries that raise errors without an error number."""

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


def mentions_full_disk(text: str) -> bool:
    """Tell whether an error's text says that the disk, or the user's quota, is full."""
    lowered = text.lower()
    return any(phrase in lowered for phrase in ERROR_PHRASES)


def disk_full_message(error: BaseException) -> str | None:
    """Return the line of an error, or of one of its causes, that reports a full disk."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if getattr(current, "errno", None) in ERROR_NUMBERS or mentions_full_disk(str(current)):
            return first_line(current)
        current = current.__cause__ or current.__context__
    return None


def disk_full_error(folder: Path, message: str) -> EnvironmentProblem:
    """Build the error that pauses the study in ``folder``."""
    return EnvironmentProblem(
        "disk-full",
        f"The disk is full ({message}). The study in {folder} is paused: no trial was marked as "
        f"failed, and all results so far are kept.{_describe_free_space(folder)}",
        "free some disk space, then run the same command to resume.",
    )


def _describe_free_space(folder: Path) -> str:
    try:
        return f" Free space there: {shutil.disk_usage(folder).free / 2**20:,.0f} MiB."
    except OSError:
        return ""


@contextlib.contextmanager
def translate_disk_full(folder: Path) -> Iterator[None]:
    """Turn any error that reports a full disk into the one that pauses the study.

    Raises:
        EnvironmentProblem: ``disk-full``.
    """
    try:
        yield
    except OSError as error:
        message = disk_full_message(error)
        if message is None:
            raise
        raise disk_full_error(folder, message) from error
