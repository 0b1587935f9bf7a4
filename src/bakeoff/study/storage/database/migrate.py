"""Schema versions of the database, and the migrations from older ones.

``MIGRATIONS`` has one function per step from a version to the next. Before the first of them the
database is copied (``study.db.v1.bak``); all of them run in one transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bakeoff.core import files
from bakeoff.core.trial_dir import TRIALS, manifest_hash
from bakeoff.study.storage.database import errors, schema

Migration = Callable[[sa.Connection, Path], None]


def read_version(connection: sa.Connection, path: Path) -> int | None:
    """Return a database's version; None for an empty one.

    Raises:
        PreflightError: ``database-version`` for a newer one, ``database-foreign``.
    """
    tables = set(sa.inspect(connection).get_table_names())
    if not tables:
        return None
    if not {"key", "value"} <= {c["name"] for c in _study_columns(connection, tables)}:
        raise errors.foreign_database_error(path)
    found = connection.scalar(sa.text("SELECT value FROM study WHERE key = 'schema_version'"))
    if found is None:  # killed during creation: version 1 committed table by table
        return None
    if not str(found).isdecimal():
        raise errors.damaged_error(path, f"its version is {str(found)[:20]!r}")
    number = int(found)
    if number > schema.VERSION:
        raise errors.newer_version_error(path, number, schema.VERSION)
    return number


def _study_columns(connection: sa.Connection, tables: set[str]) -> list[Any]:
    return sa.inspect(connection).get_columns("study") if "study" in tables else []


def create_tables(connection: sa.Connection) -> None:
    """Create the tables and write their version, in the transaction of ``connection``."""
    schema.metadata.create_all(connection)
    _write_version(connection, schema.VERSION)


def upgrade(engine: sa.Engine, path: Path, found: int) -> None:
    """Copy the database, then migrate it from version ``found`` to the current one, atomically."""
    back_up(path, path.with_name(f"{path.name}.v{found}.bak"))
    with engine.begin() as connection:
        for number in range(found, schema.VERSION):
            MIGRATIONS[number](connection, path.parent)
            _write_version(connection, number + 1)


def back_up(path: Path, target: Path) -> None:
    """Copy a database atomically with SQLite's backup API, even while it is in use.

    Raises:
        EnvironmentProblem: ``disk-full``, ``database-damaged``.
    """
    partial = target.with_name(target.name + files.PARTIAL_SUFFIX)
    partial.unlink(missing_ok=True)
    try:
        with (
            closing(schema.connect(path, "rw")) as source,
            closing(schema.connect(partial, "rwc")) as copy,
        ):
            source.backup(copy)
            copy.execute(
                "PRAGMA journal_mode = DELETE"
            )  # a single file, so that copies of it are complete
    except sqlite3.Error as error:
        partial.unlink(missing_ok=True)
        raise errors.as_bakeoff_error(error, path) from error
    files.fsync_path(partial)
    partial.replace(target)
    files.fsync_path(target.parent)


def _write_version(connection: sa.Connection, number: int) -> None:
    connection.execute(
        sa.text("INSERT OR REPLACE INTO study (key, value) VALUES ('schema_version', :v)"),
        {"v": json.dumps(number)},
    )


def _add_manifest_hashes(connection: sa.Connection, folder: Path) -> None:
    """Migrate 1 -> 2: add the manifest hash of each result's folder, and the tables of the race.

    Without the hash, a folder that was lost or changed looks like one that never existed.
    """
    schema.metadata.create_all(connection)  # adds ``rungs`` and ``decisions`` if missing
    connection.execute(sa.text("ALTER TABLE trials ADD COLUMN sealed TEXT"))
    query = sa.text("SELECT id FROM trials WHERE status IS NOT NULL")
    for trial_id in list(connection.scalars(query)):
        connection.execute(
            sa.text("UPDATE trials SET sealed = :s WHERE id = :i"),
            {"s": manifest_hash(folder / TRIALS / trial_id), "i": trial_id},
        )


def _add_looks(connection: sa.Connection, folder: Path) -> None:
    """Migrate 2 -> 3: add the table of looks; studies of an older protocol have none."""
    schema.metadata.create_all(connection)


MIGRATIONS: Mapping[int, Migration] = {1: _add_manifest_hashes, 2: _add_looks}
