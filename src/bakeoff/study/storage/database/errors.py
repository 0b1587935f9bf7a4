"""SQLite errors about the database file as errors with a code and a hint."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

from bakeoff.core import files
from bakeoff.core.errors import BakeoffError, EnvironmentProblem, PreflightError
from bakeoff.core.names import quote_path

FULL, IO_ERROR, CANNOT_OPEN = sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN
BUSY, LOCKED, READ_ONLY = sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY
DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
FILE_ERRORS = (FULL, IO_ERROR, CANNOT_OPEN, BUSY, LOCKED, READ_ONLY, *DAMAGE_CODES)
MIN_FREE_BYTES = 1 << 20
"""An I/O error with less free space than this counts as a full disk: SQLite reports no more than
that when its shared memory does not fit."""


def is_file_error(error: sqlite3.Error) -> bool:
    """Return whether an error is about the database file, not about a statement."""
    return _code(error) in FILE_ERRORS


def as_bakeoff_error(error: sqlite3.Error, path: Path) -> BakeoffError:
    """Convert an SQLite error into one with a code and a hint; ``path`` is the database."""
    code, message = _code(error), str(error)
    if code == FULL or (code in (IO_ERROR, CANNOT_OPEN) and _is_disk_full(path)):
        return files.disk_full_error(path.parent, message)
    if code in DAMAGE_CODES:
        return damaged_error(path, message)
    if code in (BUSY, LOCKED):
        return EnvironmentProblem(
            "database-busy",
            f"The study's database {path} is locked by another program ({message}).",
            "close any program that has it open for writing (a database browser, a backup), then "
            "run the command again.",
        )
    return EnvironmentProblem(
        "database-unusable",
        f"The study's database {path} cannot be read or written ({message}).",
        f"check that the file exists, its permissions and its disk; `bakeoff doctor "
        f"{quote_path(path.parent)}` checks the database.",
    )


def damaged_error(path: Path, problem: str) -> EnvironmentProblem:
    """Build the error for a database that is not an intact SQLite file."""
    return EnvironmentProblem(
        "database-damaged",
        f"The study's database {path} is damaged: {problem}.",
        f"`bakeoff doctor {quote_path(path.parent)} --repair` copies what is readable into a new "
        "database and restores finished trials from their folders.",
    )


def newer_version_error(path: Path, found: int, known: int) -> PreflightError:
    """Build the error for a database that a newer bakeoff wrote."""
    return PreflightError(
        "database-version",
        f"The study's database {path} has version {found}; this bakeoff supports up to {known}.",
        "`pip install --upgrade bakeoff`, or a new study folder: `--out DIR`.",
    )


def foreign_database_error(path: Path) -> PreflightError:
    """Build the error for a database that is not a study's."""
    return PreflightError(
        "database-foreign",
        f"{path} is an SQLite database but not a study's; it was not changed.",
        "another study folder: `--out DIR`.",
    )


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 for an error of the sqlite3 module itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_disk_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < MIN_FREE_BYTES
    except OSError:
        return False
