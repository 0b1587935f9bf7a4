"""Databases of other versions, other programs, and broken ones: brought up, read, or refused."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from helpers.databases import TRIALS, result

from bakeoff.core import trial_dir
from bakeoff.core.errors import BakeoffError
from bakeoff.core.results import Status
from bakeoff.study.storage.database import Reader, TrialRow, Writer, migrate, schema

VERSION_1 = """
CREATE TABLE study (key TEXT NOT NULL, value JSON NOT NULL, PRIMARY KEY (key));
CREATE TABLE trials (id TEXT NOT NULL, position INTEGER NOT NULL, phase TEXT NOT NULL,
  method TEXT NOT NULL, seed INTEGER NOT NULL, spec JSON NOT NULL, status TEXT, result JSON,
  finished_at TEXT, PRIMARY KEY (id));
CREATE TABLE scores (trial_id TEXT NOT NULL, split TEXT NOT NULL, item INTEGER NOT NULL,
  score FLOAT NOT NULL, prediction TEXT, PRIMARY KEY (trial_id, split, item)) WITHOUT ROWID;
CREATE TABLE costs (method TEXT NOT NULL, value JSON NOT NULL, PRIMARY KEY (method));
"""
"""As the first bakeoff made it: before the race."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A study of version 1: its first trial is done and has a folder, the second is planned."""
    path = tmp_path / "study.db"
    kept = result(TRIALS[0])
    value = kept.to_json()
    value["splits"] = {s: {"mean_loss": v.mean_loss} for s, v in kept.splits.items()}
    del value["item_losses"], value["forgetting"], value["initial_losses"]  # it knew none
    with closing(sqlite3.connect(path)) as db:
        db.executescript(VERSION_1)
        db.execute("INSERT INTO study VALUES ('schema_version', '1'), ('key', '[1, 2]')")
        for n, (trial, status, found) in enumerate(
            [(TRIALS[0], "done", json.dumps(value)), (TRIALS[1], None, None)]
        ):
            row = (trial.id, n, trial.phase, "lora", trial.seed, json.dumps(trial.to_json()))
            db.execute("INSERT INTO trials VALUES (?,?,?,?,?,?,?,?,NULL)", (*row, status, found))
        for item, (score, text) in enumerate(
            zip(kept.splits["test"].scores, kept.splits["test"].predictions, strict=True)
        ):
            db.execute(
                "INSERT INTO scores VALUES (?,?,?,?,?)", (TRIALS[0].id, "test", item, score, text)
            )
        db.commit()
    (tmp_path / "trials" / TRIALS[0].id).mkdir(parents=True)
    trial_dir.write_manifest(tmp_path / "trials" / TRIALS[0].id, kept)
    return path


def test_older_version_read_unchanged(old: Path) -> None:
    """An older version is read without changing it.

    Fault 24: a report of an old study needs no migration, and changes nothing.
    """
    before = old.read_bytes()
    with Reader(old) as reader:
        assert reader.version == 1
        assert reader.trials() == ((TRIALS[0], result(TRIALS[0])), (TRIALS[1], None))
        assert reader.trial_rows() == {
            TRIALS[0].id: TrialRow("done", None),
            TRIALS[1].id: TrialRow(None, None),
        }
        assert (reader.decisions(), reader.last_rung(), reader.costs()) == ([], {}, {})
        assert reader.values()["key"] == [1, 2]
    assert old.read_bytes() == before


def test_older_version_migrated_after_backup(old: Path) -> None:
    """An older version is migrated after a backup.

    Fault 24: nothing is lost on the way, and the old database is kept, whole.
    """
    Writer(old).close()
    seal = trial_dir.manifest_hash(old.parent / "trials" / TRIALS[0].id)
    assert seal is not None
    with Reader(old) as reader:
        assert reader.version == schema.VERSION == 3
        assert reader.trials() == ((TRIALS[0], result(TRIALS[0])), (TRIALS[1], None))
        assert reader.trial_rows()[TRIALS[0].id] == TrialRow("done", seal)
        assert reader.values()["key"] == [1, 2]
        assert reader.integrity_problems() == []
    with Writer(old) as writer:  # what version 1 had no tables for
        at = dataclasses.replace(result(TRIALS[1]), step=5, status=Status.STOPPED)
        writer.save_group([at])
    backup = old.with_name("study.db.v1.bak")
    with Reader(backup) as reader:
        assert reader.version == 1
        assert reader.trials() == ((TRIALS[0], result(TRIALS[0])), (TRIALS[1], None))
    assert {p.name for p in old.parent.iterdir()} == {"study.db", "study.db.v1.bak", "trials"}


def test_failed_migration_keeps_old_version(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that fails leaves the old version.

    Fault 24: all of it or nothing.
    """

    def stop(connection: object, folder: Path) -> None:
        migrate._add_manifest_hashes(connection, folder)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(migrate, "MIGRATIONS", {**migrate.MIGRATIONS, 1: stop})
        with pytest.raises(KeyboardInterrupt):
            Writer(old)
    with Reader(old) as reader:
        assert reader.version == 1
        assert reader.trial_rows()[TRIALS[0].id] == TrialRow("done", None)
    Writer(old).close()
    with Reader(old) as reader:
        assert reader.version == schema.VERSION


def test_every_version_has_its_way_up() -> None:
    assert sorted(migrate.MIGRATIONS) == list(range(1, schema.VERSION))


@pytest.mark.parametrize("opened", [Writer, Reader])
def test_newer_version_refused(tmp_path: Path, opened: Callable[[Path], object]) -> None:
    """A newer version is refused.

    Fault 24: by readers too, with what to do, and nothing is touched.
    """
    path = tmp_path / "study.db"
    Writer(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE study SET value = '99' WHERE key = 'schema_version'")
        db.execute("DROP TABLE scores")
        db.commit()
    before = path.read_bytes()
    with pytest.raises(BakeoffError) as error:
        opened(path)
    assert (error.value.code, error.value.exit_code) == ("database-version", 3)
    assert "version 99; this bakeoff supports up to 3" in error.value.cause
    assert "upgrade" in error.value.try_
    assert path.read_bytes() == before


@pytest.mark.parametrize("opened", [Writer, Reader])
@pytest.mark.parametrize("study_table", [False, True])
def test_somebody_elses_database_is_refused_untouched(
    tmp_path: Path, opened: Callable[[Path], object], study_table: bool
) -> None:
    path = tmp_path / "study.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE study (n)" if study_table else "CREATE TABLE letters (n)")
        db.commit()
    before = path.read_bytes()
    with pytest.raises(BakeoffError, match="database-foreign"):
        opened(path)
    assert path.read_bytes() == before


def whole(path: Path) -> bytes:
    """Write a database of some pages, and return its bytes."""
    with Writer(path) as writer:
        writer.add_trials(TRIALS)
        for trial in TRIALS:
            writer.save(result(trial))
    return path.read_bytes()


def zeros(raw: bytes) -> bytes:
    """Blank a page in the middle."""
    return raw[:4096] + bytes(4096) + raw[8192:]


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "no database": lambda _: b"name = 'tiny'\n" * 1000,
    "cut off": lambda raw: raw[: len(raw) // 2],
    "a page is blank": zeros,
    "its head is gone": lambda raw: bytes(100) + raw[100:],
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_database_has_error_code(tmp_path: Path, how: str) -> None:
    """A broken database gives an error with a code.

    Fault 25: damaged, truncated, or no database at all; readers see an error or sound rows.
    """
    path = tmp_path / "study.db"
    raw = whole(path)
    path.write_bytes(BROKEN[how](raw))
    assert path.read_bytes() != raw
    with pytest.raises(BakeoffError) as error:
        Writer(path)
    assert (error.value.code, error.value.exit_code) == ("database-damaged", 6)
    assert "doctor" in error.value.try_
    found = None
    try:
        with Reader(path) as reader:
            found = [t for t, _ in reader.trials()]
    except BakeoffError as unreadable:
        error_code = unreadable.code
    assert found == TRIALS or error_code == "database-damaged"


def test_non_numeric_version_is_damage(tmp_path: Path) -> None:
    """A version that is not a number is damage."""
    path = tmp_path / "study.db"
    Writer(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE study SET value = '\"x\"' WHERE key = 'schema_version'")
        db.commit()
    for opened in (Writer, Reader):
        with pytest.raises(BakeoffError, match="database-damaged"):
            opened(path)


def test_unfinished_database_created_again(tmp_path: Path) -> None:
    """A database that was never completed is created again.

    A kill between the file and its tables: nothing is there to be lost.
    """
    path = tmp_path / "study.db"
    path.touch()
    with pytest.raises(BakeoffError, match="no-study"):
        Reader(path)
    with Writer(path) as writer:
        writer.add_trials(TRIALS)
    with Reader(path) as reader:
        assert len(reader.trials()) == 3


def test_foreign_lock_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that another program holds is named.

    Fault 23: a database browser in the middle of a change.
    """
    path = tmp_path / "study.db"
    Writer(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as browser, Writer(path) as writer:
        with writer._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout = 0")
        browser.execute("BEGIN IMMEDIATE")
        with pytest.raises(BakeoffError) as error:
            writer.set("key", 1)
        assert (error.value.code, error.value.exit_code) == ("database-busy", 6)
        browser.execute("ROLLBACK")
        writer.set("key", 1)
        with Reader(path) as reader:
            assert reader.values()["key"] == 1
