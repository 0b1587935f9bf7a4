"""The tables. ``trials`` holds what is planned and what came of it; ``scores`` one row an item.

``rungs`` holds what a trial had given when it stood at a rung, ``decisions`` what the race made of
it there.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event

VERSION = 1

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


def engine(path: Path, read_only: bool) -> sa.Engine:
    """Return an engine on the database file; a reader can never write or create it."""
    mode = "ro" if read_only else "rwc"
    url = f"sqlite:///file:{path.resolve()}?mode={mode}&uri=true"
    made = sa.create_engine(url, poolclass=sa.pool.NullPool if read_only else sa.pool.StaticPool)

    @event.listens_for(made, "connect")
    def _pragmas(connection: object, _: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        cursor.execute("PRAGMA busy_timeout = 10000")
        if not read_only:
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")
            cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    return made
