"""What SQLite says of a file that it cannot use, as errors that a user can act upon.

Called by the engine (``schema``) for every statement of readers and writer alike.
"""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

from bakeoff.core import disk_full
from bakeoff.core.errors import BakeoffError, EnvironmentProblem, PreflightError

FULL, IO_ERROR, CANNOT_OPEN = sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN
BUSY, LOCKED, READ_ONLY = sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY
DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
FILE_ERRORS = (FULL, IO_ERROR, CANNOT_OPEN, BUSY, LOCKED, READ_ONLY, *DAMAGE_CODES)
MIN_FREE_BYTES = 1 << 20
"""Free bytes below which an I/O error is a full disk: SQLite has no other word for a full disk
while it makes its shared memory."""


def is_file_error(error: sqlite3.Error) -> bool:
    """Tell whether an error is about the database's file, not about a statement."""
    return _code(error) in FILE_ERRORS


def as_bakeoff_error(error: sqlite3.Error, path: Path) -> BakeoffError:
    """Return the error that a user reads; ``path`` is the database."""
    code, said = _code(error), str(error)
    if code == FULL or (code in (IO_ERROR, CANNOT_OPEN) and _is_disk_full(path)):
        return disk_full.disk_full_error(path.parent, said)
    if code in DAMAGE_CODES:
        return damaged_error(path, said)
    if code in (BUSY, LOCKED):
        return EnvironmentProblem(
            "database-busy",
            f"The study's database {path} is held by another program ({said}).",
            "close what has it open for writing (a database browser, a backup), then run it again.",
        )
    return EnvironmentProblem(
        "database-unusable",
        f"The study's database {path} cannot be read or written ({said}).",
        f"check that the file is there, its permissions and its disk; `bakeoff doctor "
        f"{path.parent}` looks closer.",
    )


def damaged_error(path: Path, said: str) -> EnvironmentProblem:
    """Build the error for a database that is no whole SQLite file."""
    return EnvironmentProblem(
        "database-damaged",
        f"The study's database {path} is damaged: {said}.",
        f"`bakeoff doctor {path.parent} --mend`: what can be read of it is kept in a new one, and "
        "finished trials are taken from their folders.",
    )


def newer_version_error(path: Path, found: int, known: int) -> PreflightError:
    """Build the error for a database that a later bakeoff wrote."""
    return PreflightError(
        "database-version",
        f"The study's database {path} has version {found}, this bakeoff knows up to {known}.",
        "a newer bakeoff: `pip install --upgrade bakeoff`; or a new study folder: `--out DIR`.",
    )


def foreign_database_error(path: Path) -> PreflightError:
    """Build the error for a database that is no study's."""
    return PreflightError(
        "database-foreign",
        f"{path} is a SQLite database, but no study's: nothing in it was touched.",
        "another study folder: `--out DIR`.",
    )


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 where the error is the module's own."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_disk_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < MIN_FREE_BYTES
    except OSError:
        return False
