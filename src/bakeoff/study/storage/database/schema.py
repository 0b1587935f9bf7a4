"""The tables. ``trials`` holds what is planned and what came of it; ``scores`` one row an item.

``rungs`` holds what a trial had given when it stood at a rung, ``decisions`` what the race made of
it there. What an older version of the tables lacks is added by ``migrate``.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event

from bakeoff.study.storage import filesystem
from bakeoff.study.storage.database import errors

VERSION = 2

metadata = sa.MetaData()

study = sa.Table(
    "study",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
)

trials = sa.Table(
    "trials",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("phase", sa.Text, nullable=False),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("seed", sa.Integer, nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("status", sa.Text),
    sa.Column("result", sa.JSON(none_as_null=True)),
    sa.Column("finished_at", sa.Text),
    # sha256 of the list of hashes in the trial's folder, as it was when the result was written;
    # none where a result has no folder
    sa.Column("sealed", sa.Text),
)

scores = sa.Table(
    "scores",
    metadata,
    sa.Column("trial_id", sa.Text, sa.ForeignKey("trials.id"), primary_key=True),
    sa.Column("split", sa.Text, primary_key=True),
    sa.Column("item", sa.Integer, primary_key=True),
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("prediction", sa.Text),
    sqlite_with_rowid=False,
)

rungs = sa.Table(
    "rungs",
    metadata,
    sa.Column("trial_id", sa.Text, sa.ForeignKey("trials.id"), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("result", sa.JSON, nullable=False),
)

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("trial_id", sa.Text, sa.ForeignKey("trials.id"), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
)

costs = sa.Table(
    "costs",
    metadata,
    sa.Column("method", sa.Text, primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
)


def create_engine(path: Path, read_only: bool) -> sa.Engine:
    """Return an engine on the database file; a reader can never write or create it.

    Every transaction of the writer takes the write lock when it begins, every one of a reader is
    one snapshot. What SQLite says of the file becomes an error that a user can act upon.
    """
    mode = "ro" if read_only else "rwc"
    url = f"sqlite:///file:{quote(str(path.resolve()))}?mode={mode}&uri=true"
    made = sa.create_engine(url, poolclass=sa.pool.NullPool if read_only else sa.pool.StaticPool)

    @event.listens_for(made, "connect")
    def _pragmas(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # the module's own BEGIN spares readers: see below
        connection.execute("PRAGMA busy_timeout = 10000")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(made, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    @event.listens_for(made, "handle_error")
    def _tell(context: sa.ExceptionContext) -> None:
        error = context.original_exception
        if isinstance(error, sqlite3.Error) and errors.is_file_error(error):
            raise errors.as_bakeoff_error(error, path) from error

    return made


def set_journal_mode(made: sa.Engine, path: Path) -> None:
    """Set the writer's journal: the write-ahead log, or the old one where memory is not shared.

    Only once it is known that the file is a study's: this writes to it.
    """
    mount = filesystem.filesystem_of(path)
    journal = (
        "DELETE" if mount is not None and filesystem.is_network_filesystem(mount.kind) else "WAL"
    )
    connection = made.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA journal_mode = {journal}")
        cursor.close()
    except sqlite3.Error as error:
        raise errors.as_bakeoff_error(error, path) from error
    finally:
        connection.close()
