"""A reader during writes never sees half of anything: one process writes, another reads."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sqlite3
from contextlib import closing, nullcontext
from pathlib import Path

import pytest
from helpers.trials import ENTRIES

from bakeoff.core.errors import BakeoffError
from bakeoff.core.results import SplitScores, Status, TrialResult
from bakeoff.core.trial import Trial
from bakeoff.study.storage.database import Reader, Writer
from bakeoff.testing.trials import CONDITIONS

ITEMS, STEP = 20, 5


def trial(n: int) -> Trial:
    return Trial(ENTRIES[0], {"learning_rate": 1e-3}, n, "search", CONDITIONS)


def result(of: Trial, version: int) -> TrialResult:
    """Return a result whose every number is ``version``."""
    scores = SplitScores((float(version),) * ITEMS, (str(version),) * ITEMS, float(version))
    return TrialResult(of.id, Status.DONE, splits={"test": scores}, step=STEP)


def write_for_ever(path: Path) -> None:
    """Plan a trial, keep its results twice, decide on it; note how many are decided."""
    with Writer(path) as writer:
        for n in range(100_000):
            new = trial(n)
            writer.add_trials([new])
            writer.save(result(new, n))
            writer.save_group([dataclasses.replace(result(new, n), status=Status.STOPPED)])
            both = [new, trial(n - 1)] if n else [new]
            writer.save_decisions([{"trial_id": t.id, "step": n, "value": n} for t in both])
            writer.save(result(new, n + 1))
            writer.set_all({"one": n, "other": n})


def check(reader: Reader) -> int:
    """Hold all that a study may read against what is written together; return the trials' count."""
    with reader.snapshot():
        values, decisions = reader.values(), reader.decisions()
        finished, rows, trials = reader.finished_ids(), reader.trial_rows(), reader.trials()
        standing = reader.results_at_rung(STEP)
    assert values.get("one") == values.get("other")
    there = {t.id: r for t, r in trials}
    assert len(there) == len(rows)
    assert finished == {i for i, r in there.items() if r is not None}
    assert {i for i, row in rows.items() if row.status} == finished
    assert {d["trial_id"] for d in decisions} <= set(standing) <= finished
    for n in {d["step"] for d in decisions}:
        assert sum(d["step"] == n for d in decisions) == min(2, n + 1)
    assert len({d["step"] for d in decisions}) >= values.get("one", -1) + 1
    for found in there.values():
        if found is not None:
            split = found.splits["test"]
            assert len(split.scores) == ITEMS
            assert {*split.scores, split.mean_loss} == {split.scores[0]}
            assert set(split.predictions) == {str(int(split.scores[0]))}
    return len(there)


@pytest.mark.parametrize("once", [True, False])
def test_reader_sees_consistent_snapshots(tmp_path: Path, once: bool) -> None:
    """A reader never sees a partly written study.

    Fault 23: neither a reader that stays open nor one a look; the writer never waits for them.

    The writer is killed in the end: what it had committed is whole.
    """
    path = tmp_path / "study.db"
    process = multiprocessing.get_context("spawn").Process(target=write_for_ever, args=(path,))
    process.start()
    reader, looks, seen = None, 0, set()
    while (looks < 30 or len(seen) < 10) and process.is_alive():
        try:
            reader = reader if reader is not None and once else Reader(path)
        except BakeoffError as error:
            if seen or error.code not in ("no-study", "database-unusable"):
                raise
            continue  # it has not begun yet
        seen.add(check(reader))
        looks += 1
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the writer failed before it was killed"
    assert len(seen) >= 10, "nothing was written between two looks"
    with Reader(path) as last:
        assert check(last) >= max(seen)
        assert last.integrity_problems() == []


def _pause(writer: Writer, of: Trial, step: int) -> None:
    """Write a result of a trial that is paused at the rung ``step``."""
    paused = dataclasses.replace(result(of, 0), status=Status.STOPPED, step=step)
    writer.save_group([paused])


def test_last_pause_is_in_the_snapshot(tmp_path: Path) -> None:
    """Inside ``snapshot`` the last pause does not change while the writer goes on."""
    path = tmp_path / "study.db"
    with Writer(path) as writer:
        writer.add_trials([trial(0)])
        _pause(writer, trial(0), 3)
        with Reader(path) as reader:
            with reader.snapshot():
                assert reader.last_pause((0, 10)) == {trial(0).id: 3}
                _pause(writer, trial(0), 6)
                assert reader.last_pause((0, 10)) == {trial(0).id: 3}
                assert reader.last_rung() == {trial(0).id: 3}
            assert reader.last_pause((0, 10)) == {trial(0).id: 6}
            assert reader.last_pause((0, 6)) == {trial(0).id: 3}


@pytest.mark.parametrize("in_snapshot", [False, True])
def test_broken_json_is_damage(tmp_path: Path, in_snapshot: bool) -> None:
    """Broken JSON is ``database-damaged``, in and outside a snapshot; the last pause reads none."""
    path = tmp_path / "study.db"
    with Writer(path) as writer:
        writer.add_trials([trial(0)])
        _pause(writer, trial(0), STEP)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE rungs SET result = '{'")
    with Reader(path) as reader, reader.snapshot() if in_snapshot else nullcontext():
        with pytest.raises(BakeoffError) as error:
            reader.results_at_rung(STEP)
        assert error.value.code == "database-damaged"
        assert reader.last_pause((0, 10)) == {trial(0).id: STEP}
