"""Tables of the database, and engines on it.

``trials`` holds plans and results, ``scores`` one row per item, ``rungs`` the results of trials at
rungs, ``decisions`` what the race decided there, and ``looks`` the analyses of the test scores
after each round of replicates. Missing parts of older versions are added by ``migrate``.
"""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event

from bakeoff.study.storage import filesystem
from bakeoff.study.storage.database import errors

VERSION = 3
PLANNED, AGAIN = "planned", "again"
"""Kinds of looks: those of the study's rounds, and those that ``--again`` allowed."""

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
    # sha256 of the checksum manifest in the trial's folder when the result was written; null if the
    # result has no folder
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

looks = sa.Table(
    "looks",
    metadata,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("value", sa.JSON, nullable=False),
)

costs = sa.Table(
    "costs",
    metadata,
    sa.Column("method", sa.Text, primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
)


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open a database file in SQLite's ``mode``: ``ro``, ``rw`` or ``rwc`` (create it).

    The URI goes to sqlite3 itself, quoted once. In a URL of SQLAlchemy's, which unquotes it again,
    a folder named ``a%20b`` would be the folder ``a b``, and ``c#1`` the file ``c``.
    """
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, check_same_thread=False)


def create_engine(path: Path, read_only: bool) -> sa.Engine:
    """Return an engine on the database file; a read-only one can neither write nor create it.

    A writer's transaction takes the write lock at its beginning; a reader's is one snapshot. SQLite
    errors about the file are raised as ``BakeoffError`` with a code.
    """
    engine = sa.create_engine(
        "sqlite://",
        creator=partial(connect, path, "ro" if read_only else "rwc"),
        poolclass=sa.pool.NullPool if read_only else sa.pool.StaticPool,
    )

    @event.listens_for(engine, "connect")
    def _set_pragmas(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # sqlite3 would begin transactions by itself: see _begin
        connection.execute("PRAGMA busy_timeout = 10000")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    @event.listens_for(engine, "handle_error")
    def _convert_error(context: sa.ExceptionContext) -> None:
        error = context.original_exception
        if isinstance(error, sqlite3.Error) and errors.is_file_error(error):
            raise errors.as_bakeoff_error(error, path) from error

    return engine


def set_journal_mode(engine: sa.Engine, path: Path) -> None:
    """Set the journal mode: the write-ahead log, or a rollback journal on network file systems.

    This writes to the file, so it must be known to be a study's.
    """
    mount = filesystem.filesystem_of(path)
    journal = (
        "DELETE" if mount is not None and filesystem.is_network_filesystem(mount.kind) else "WAL"
    )
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA journal_mode = {journal}")
        cursor.close()
    except sqlite3.Error as error:
        raise errors.as_bakeoff_error(error, path) from error
    finally:
        connection.close()
