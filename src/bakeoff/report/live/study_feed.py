"""Follow one study and compute its report once for all pages that show it.

An update reads the modification times of the database files and the end of the log. If the database
changed, one of the callers recomputes the report in its thread; the others get the previous one
meanwhile. Nothing runs between updates.
"""

from __future__ import annotations

import datetime
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core.errors import BakeoffError
from bakeoff.report.live import queries
from bakeoff.report.live.items import ItemTable
from bakeoff.report.live.log_reader import LogReader
from bakeoff.report.live.queries import Revision, Snapshot, StudyProblem
from bakeoff.report.sanitize import clean
from bakeoff.study.monitoring.status import StoredStudy, phase_seconds_left, read_work
from bakeoff.study.storage import lock

MIN_INTERVAL = 3.0
"""Minimum seconds between two computations of a report; at least three times its duration."""
STATUS_TTL = 0.5
"""Seconds for which a status is reused by other pages."""
RETRY_SECONDS = 10.0
"""Seconds after which a study with a problem is read again although its files did not change."""
_computing = threading.BoundedSemaphore(1)  # leave the processor to the running study


class FeedState(NamedTuple):
    """The state of a study for a page: its progress, and its sections or the problem."""

    status: dict[str, Any]
    snapshot: Snapshot | StudyProblem | None
    revision: Revision | None
    """The revision of ``snapshot``."""


class StudyFeed:
    """A study folder under its id, with its latest snapshot."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.id = folder, name
        self._log = LogReader(folder)
        self._status_lock, self._compute_lock = threading.Lock(), threading.Lock()
        self._snapshot: Snapshot | StudyProblem | None = None
        self._revision: Revision | None = None
        self._computed_at, self._duration = -RETRY_SECONDS, 0.0
        self._status: dict[str, Any] = {}
        self._status_time = -STATUS_TTL
        self._table: tuple[tuple[Revision | None, str], ItemTable] | None = None
        self._outline: tuple[Revision, dict[str, Any] | StudyProblem] | None = None
        self._stored: tuple[Revision, StoredStudy | StudyProblem] | None = None

    def update(self) -> FeedState:
        """Return the current state; recompute it if that is due and no other thread does."""
        status = self.status()
        if self._due() and self._compute_lock.acquire(blocking=False):
            try:
                self._compute()
                status = self.status(fresh=True)
            finally:
                self._compute_lock.release()
        return FeedState(status, self._snapshot, self._revision)

    def wait_for_snapshot(self) -> Snapshot | StudyProblem:
        """Return the study's snapshot; wait for the first one."""
        with self._compute_lock:
            if self._snapshot is None or self._due():
                self._compute()
        assert self._snapshot is not None
        return self._snapshot

    def _due(self) -> bool:
        since = time.monotonic() - self._computed_at
        if isinstance(self._snapshot, StudyProblem) and since > RETRY_SECONDS:
            return True
        return self.stale and since > max(MIN_INTERVAL, 3 * self._duration)

    def _compute(self) -> None:
        with _computing:
            began = time.monotonic()
            # taken before reading, so that writes during the read count as a later change
            revision = queries.revision(self.folder)
            self._snapshot = queries.catch_problems(
                lambda: queries.snapshot(self.folder), self.folder
            )
            self._revision = revision
            self._computed_at = time.monotonic()
            self._duration = self._computed_at - began

    def status(self, fresh: bool = False) -> dict[str, Any]:
        """Return the progress: state, trials, phase, last message, time left."""
        with self._status_lock:
            if fresh or time.monotonic() - self._status_time > STATUS_TTL:
                self._status = self._read_status()
                self._status_time = time.monotonic()
            return self._status

    def _read_status(self) -> dict[str, Any]:
        holder = None
        if (self.folder / lock.LOCK).exists():  # checking the lock would create the file
            holder = lock.current_holder(self.folder)
        outline = self.outline()
        if isinstance(outline, StudyProblem):
            outline = {"name": str(clean(self.folder.name)), "done": None, "planned": None}
        progress = {**self._log.update(), "seconds_left": self._seconds_left(holder)}
        if holder is None:
            progress["phase"] = None
        return {**outline, "state": self._state(holder is not None), **_phase_fields(progress)}

    def _seconds_left(self, holder: lock.LockHolder | None) -> float | None:
        """Return the time left of the phase, by the same estimate as ``bakeoff status``."""
        if holder is None:
            return None
        revision, cached = queries.revision(self.folder), self._stored
        if cached is None or cached[0] != revision:
            stored = queries.catch_problems(lambda: queries.stored_study(self.folder), self.folder)
            self._stored = cached = (revision, stored)
        if isinstance(cached[1], StudyProblem):
            return None
        return phase_seconds_left(read_work(self.folder, holder), cached[1])

    def _state(self, running: bool) -> str | None:
        if running:
            return "running"
        if isinstance(self._snapshot, Snapshot):
            return "done" if self._snapshot.complete else "stopped"
        return "error" if isinstance(self._snapshot, StudyProblem) else None

    def outline(self) -> dict[str, Any] | StudyProblem:
        """Return the study's outline, read again when the database files change."""
        revision, cached = queries.revision(self.folder), self._outline
        if cached is None or cached[0] != revision:
            outline = queries.catch_problems(lambda: queries.outline(self.folder), self.folder)
            cached = (revision, outline)
            self._outline = None if isinstance(outline, StudyProblem) else cached
        return cached[1]

    @property
    def stale(self) -> bool:
        """Tell whether the snapshot is missing or of an earlier revision."""
        return self._revision is None or self._revision != queries.revision(self.folder)

    def row(self) -> dict[str, Any]:
        """Return the row of the list of studies; verdict and best are None without a snapshot."""
        outline, snapshot = self.outline(), self._snapshot
        problem = outline.to_json() if isinstance(outline, StudyProblem) else None
        if isinstance(snapshot, StudyProblem):
            problem = problem or snapshot.to_json()
        times = [stamp for stamp, _ in queries.revision(self.folder)]
        when = datetime.datetime.fromtimestamp(max(times) / 1e9, datetime.UTC)
        status = self.status()
        return {
            **({} if isinstance(outline, StudyProblem) else outline),
            "id": self.id,
            "folder": str(clean(self.folder.name)),
            "name": status["name"],
            "state": "error" if problem and status["state"] != "running" else status["state"],
            "verdict": snapshot.verdict if isinstance(snapshot, Snapshot) else None,
            "best": snapshot.best if isinstance(snapshot, Snapshot) else None,
            "when": when.isoformat(timespec="seconds"),
            "stale": self.stale,
            "trouble": problem,
        }

    def table(self, contender: str) -> ItemTable:
        """Return the control's and a contender's test items, read once per revision.

        Raises:
            BakeoffError: errors of the study, or ``no-answers``.
        """
        snapshot = self.wait_for_snapshot()
        if isinstance(snapshot, StudyProblem):
            raise BakeoffError(*snapshot)
        key, cached = (self._revision, contender), self._table
        if cached is None or cached[0] != key:
            cached = (key, ItemTable.read(self.folder, snapshot.item_query, contender))
            self._table = cached
        return cached[1]


def _phase_fields(progress: dict[str, Any]) -> dict[str, Any]:
    """Prefix the phase's counts, because the study has counts too."""
    return {f"phase_{k}" if k in ("done", "total") else k: v for k, v in progress.items()}
