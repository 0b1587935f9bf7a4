"""Rebuild a damaged database: copy what is readable into a new file.

Plans, settings, costs and decisions are copied row by row. Results and scores are not, because they
could be incomplete; they are restored from the trials' verified folders.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bakeoff.core import files
from bakeoff.core.trial import Trial
from bakeoff.study.storage.database import schema
from bakeoff.study.storage.database.writer import Writer

COPIED_TABLES = (
    schema.study,
    schema.trials,
    schema.rungs,
    schema.decisions,
    schema.looks,
    schema.costs,
)
SKIPPED_COLUMNS = [schema.trials.c[n] for n in ("status", "result", "finished_at", "sealed")]
SKIPPED_KEYS = ("schema_version",)


def rebuild(path: Path) -> Path:
    """Replace a damaged database by a new one; return the new path of the damaged file."""
    fresh = path.with_name(f"{path.name}.rebuilt")
    _delete_database(fresh)
    Writer(fresh).close()
    engine = schema.create_engine(fresh, read_only=False)
    try:
        with engine.begin() as connection:
            known: set[str] = set()
            for table in COPIED_TABLES:
                for row in _readable_rows(path, table):
                    if table is schema.trials and _is_trial(row):
                        known.add(row["id"])
                    if row.get("trial_id", row.get("id")) in {None, *known}:
                        connection.execute(sa.insert(table).prefix_with("OR IGNORE").values(row))
    finally:
        engine.dispose()
    aside = _free_name(path.with_name(f"{path.name}.damaged"))
    for ending in ("-wal", "-shm", ""):  # SQLite would apply a log left behind to the new file
        if (old := path.with_name(path.name + ending)).exists():
            old.replace(aside.with_name(aside.name + ending))
    fresh.replace(path)
    files.fsync_path(path.parent)
    return aside


def _readable_rows(path: Path, table: sa.Table) -> Iterator[dict[str, Any]]:
    """Yield a table's rows up to the first unreadable one."""
    names = [c.name for c in table.columns if not any(c is other for other in SKIPPED_COLUMNS)]
    query = f"SELECT {', '.join(names)} FROM {table.name}"
    readers = {c.name: c.type.result_processor(_DIALECT, None) for c in table.columns}
    try:
        with closing(schema.connect(path, "ro")) as damaged:
            for values in damaged.execute(query):
                row = _decode_row(dict(zip(names, values, strict=True)), readers)
                if row is not None and row.get("key") not in SKIPPED_KEYS:
                    yield row
    except sqlite3.Error:
        return


def _decode_row(row: dict[str, Any], readers: dict[str, Any]) -> dict[str, Any] | None:
    """Convert a row to Python values; None if one of them is invalid."""
    try:
        return {n: readers[n](v) if readers[n] else v for n, v in row.items()}
    except (ValueError, TypeError):
        return None


def _is_trial(row: dict[str, Any]) -> bool:
    """Return whether a planned trial still has the hash that its id is."""
    try:
        return Trial.from_json(row["spec"]).id == str(row["id"])
    except (KeyError, TypeError):
        return False


def _free_name(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}{number}")
    return free


def _delete_database(path: Path) -> None:
    for ending in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


_DIALECT = sa.create_engine("sqlite://").dialect
