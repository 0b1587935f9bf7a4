"""Recognise a full disk, and build the one error that pauses a study for it.

A full disk is not a trial failure: no result is recorded, and the same command resumes the study
once there is space.
"""

from __future__ import annotations

import contextlib
import errno
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
