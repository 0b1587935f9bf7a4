"""The database: what is kept comes back, twice is once, a reader cannot write."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from helpers.databases import TRIALS, result

from bakeoff.core.errors import BakeoffError, EnvironmentProblem, PreflightError
from bakeoff.core.results import Cost, Status, TrialResult
from bakeoff.study.storage.database import Reader, Writer


def test_stored_values_roundtrip(tmp_path: Path) -> None:
    """Stored values are read back unchanged."""
    path = tmp_path / "study.db"
    cost = Cost("lora", Status.DONE, step_milliseconds=2.5, train_peak_bytes=10)
    failure = TrialResult(TRIALS[2].id, Status.FAILED, "why", "trace")
    with Writer(path) as writer:
        writer.add_trials(TRIALS)
        writer.save(result(TRIALS[1]))
        writer.save(failure)
        writer.save_cost(cost)
        writer.set("key", {"a": [1, None]})
    with Reader(path) as reader:
        assert reader.trials() == (
            (TRIALS[0], None), (TRIALS[1], result(TRIALS[1])), (TRIALS[2], failure),
        )  # fmt: skip
        assert reader.costs() == {"lora": cost}
        assert reader.values()["key"] == {"a": [1, None]}


def test_keeping_twice_is_keeping_once(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with Writer(path) as writer:
        for _ in range(2):
            writer.add_trials(TRIALS)
            writer.save(result(TRIALS[0]))
            writer.set("key", 1)
    with Reader(path) as reader:
        assert [r is not None for _, r in reader.trials()] == [True, False, False]
        assert reader.trials()[0][1] == result(TRIALS[0])


def test_readonly_connection_sees_commits(tmp_path: Path) -> None:
    """A reader sees commits while the writer is open and cannot write."""
    path = tmp_path / "study.db"
    with Writer(path) as writer, Reader(path) as reader:
        writer.add_trials(TRIALS[:1])
        assert len(reader.trials()) == 1
        writer.add_trials(TRIALS)
        assert len(reader.trials()) == 3
        with (
            pytest.raises(EnvironmentProblem, match="readonly"),
            reader._engine.begin() as connection,
        ):
            connection.execute(sa.text("DELETE FROM trials"))


def test_database_durable_and_versioned(tmp_path: Path) -> None:
    """The database is durable and has a version."""
    path = tmp_path / "study.db"
    with Writer(path) as writer, writer._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE study SET value = '99' WHERE key = 'schema_version'")
    with pytest.raises(PreflightError, match="database-version"):
        Writer(path)


def test_result_json_roundtrip() -> None:
    """A result survives JSON."""
    kept = result(TRIALS[0])
    assert TrialResult.from_json(kept.to_json()) == kept
    assert dataclasses.replace(kept, status=Status.DIVERGED) != kept


def test_writer_waits_for_lock(tmp_path: Path) -> None:
    """A writer waits while another connection holds the database for a moment.

    Fault 23: every transaction takes its lock at once, and ten seconds are waited for it.
    """
    path = tmp_path / "study.db"
    with Writer(path) as writer, writer._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 10_000
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    with Writer(path) as writer, closing(other):
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(0.3, lambda: other.execute("COMMIT")).start()
        started = time.monotonic()
        writer.set("key", 1)
        assert time.monotonic() - started > 0.2
        with Reader(path) as reader:
            assert reader.values()["key"] == 1


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="handles cannot be counted here")
def test_connections_leave_no_handles(tmp_path: Path) -> None:
    """Readers and writers leave no file handle open.

    Fault 33: a study opens its database some times for each segment.
    """
    path = tmp_path / "study.db"

    def use() -> int:
        with Writer(path) as writer:
            writer.add_trials(TRIALS)
            for _ in range(10):
                with Reader(path) as reader, reader.snapshot():
                    reader.values()
                    reader.trials()
        with pytest.raises(BakeoffError), Reader(tmp_path / "none.db"):
            pass
        return len(list(Path("/proc/self/fd").iterdir()))

    first = use()
    assert {use() for _ in range(5)} == {first}
