"""Room on the disk: what a full one looks like, and the one error that pauses a study for it.

Stands at the bottom, used by both halves: a worker tells the parent, the store and ``api`` raise.
A full disk is no trial's fault: nothing is recorded of it, and the same command goes on once there
is room.
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
"""How libraries that keep no error number say it, in small letters."""


def mentions_full_disk(text: str) -> bool:
    """Tell whether an error's text means that the disk, or the user's share of it, is full."""
    lowered = text.lower()
    return any(words in lowered for words in ERROR_PHRASES)


def disk_full_message(error: BaseException) -> str | None:
    """Return the line in which an error, or what caused it, says that the disk is full."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if getattr(found, "errno", None) in ERROR_NUMBERS or mentions_full_disk(str(found)):
            return first_line(found)
        found = found.__cause__ or found.__context__
    return None


def disk_full_error(folder: Path, said: str) -> EnvironmentProblem:
    """Build the error that pauses a study whose disk is full."""
    return EnvironmentProblem(
        "disk-full",
        f"The disk is full ({said}). The study in {folder} is paused: nothing was marked as "
        f"failed, and all that was written stays.{_describe_free_space(folder)}",
        "make room on it, then the same command goes on where it stopped.",
    )


def _describe_free_space(folder: Path) -> str:
    try:
        return f" Free there: {shutil.disk_usage(folder).free / 2**20:,.0f} MiB."
    except OSError:
        return ""


@contextlib.contextmanager
def translate_disk_full(folder: Path) -> Iterator[None]:
    """Turn any error that means a full disk into the one that pauses the study.

    Raises:
        EnvironmentProblem: ``disk-full``.
    """
    try:
        yield
    except OSError as error:
        said = disk_full_message(error)
        if said is None:
            raise
        raise disk_full_error(folder, said) from error
