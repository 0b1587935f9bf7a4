"""One study as it changes: looked at by every page that shows it, computed once for all of them.

A look reads the stamps of the database's files and the end of the log, and says how far the study
is. When the stamps moved on, one of the looks computes the report anew, in its thread; the others
get the last one meanwhile. Nothing runs while nobody looks.
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
from bakeoff.study.storage import lock

MIN_INTERVAL = 3.0
"""Seconds between two computations of a study at least; three times what one takes, if longer."""
STATUS_TTL = 0.5
"""Seconds for which a look holds: pages that look at the same time look once."""
RETRY_SECONDS = 10.0
"""Seconds after which a study in trouble is tried again though its files have not changed."""
_computing = threading.BoundedSemaphore(1)  # the study that runs needs the processor more


class FeedState(NamedTuple):
    """What a page shows of a study: how far it is, and its sections or why there are none."""

    strip: dict[str, Any]
    kept: Snapshot | StudyProblem | None
    revision: Revision | None
    """The revision that ``kept`` is of."""


class StudyFeed:
    """A study folder under its id."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.id = folder, name
        self._diary = LogReader(folder)
        self._looking, self._one = threading.Lock(), threading.Lock()
        self._kept: Snapshot | StudyProblem | None = None
        self._revision: Revision | None = None
        self._computed, self._took = -RETRY_SECONDS, 0.0
        self._strip: dict[str, Any] = {}
        self._looked = -STATUS_TTL
        self._table: tuple[tuple[Revision | None, str], ItemTable] | None = None
        self._outline: tuple[Revision, dict[str, Any] | StudyProblem] | None = None

    def look(self) -> FeedState:
        """Return the study as it is known now; computes where that is due and nobody else does."""
        strip = self.strip()
        if self._due() and self._one.acquire(blocking=False):
            try:
                self._compute()
                strip = self.strip(fresh=True)
            finally:
                self._one.release()
        return FeedState(strip, self._kept, self._revision)

    def whole(self) -> Snapshot | StudyProblem:
        """Return the study's snapshot, and wait for it where there is none yet."""
        with self._one:
            if self._kept is None or self._due():
                self._compute()
        assert self._kept is not None
        return self._kept

    def _due(self) -> bool:
        since = time.monotonic() - self._computed
        if isinstance(self._kept, StudyProblem) and since > RETRY_SECONDS:
            return True
        return self.stale and since > max(MIN_INTERVAL, 3 * self._took)

    def _compute(self) -> None:
        with _computing:
            began = time.monotonic()
            # before it is read: what is written meanwhile is a change after it
            revision = queries.revision(self.folder)
            self._kept = queries.catch_problems(lambda: queries.snapshot(self.folder), self.folder)
            self._revision = revision
            self._computed = time.monotonic()
            self._took = self._computed - began

    def strip(self, fresh: bool = False) -> dict[str, Any]:
        """Return how far the study is: who runs it, trials, phase, what was said, time left."""
        with self._looking:
            if fresh or time.monotonic() - self._looked > STATUS_TTL:
                self._strip = self._far()
                self._looked = time.monotonic()
            return self._strip

    def _far(self) -> dict[str, Any]:
        holder = None
        if (self.folder / lock.LOCK).exists():  # asking would make the file
            holder = lock.current_holder(self.folder)
        found = self.outline()
        if isinstance(found, StudyProblem):
            found = {"name": str(clean(self.folder.name)), "done": None, "planned": None}
        said = self._diary.look()
        if holder is None:
            said = {**said, "phase": None, "seconds_left": None}
        return {**found, "state": self._state(holder is not None), **_phase_fields(said)}

    def _state(self, running: bool) -> str | None:
        if running:
            return "running"
        if isinstance(self._kept, Snapshot):
            return "done" if self._kept.complete else "stopped"
        return "error" if isinstance(self._kept, StudyProblem) else None

    def outline(self) -> dict[str, Any] | StudyProblem:
        """Return what the database tells at once, read again when its files have changed."""
        revision, kept = queries.revision(self.folder), self._outline
        if kept is None or kept[0] != revision:
            found = queries.catch_problems(lambda: queries.outline(self.folder), self.folder)
            kept = (revision, found)
            self._outline = None if isinstance(found, StudyProblem) else kept
        return kept[1]

    @property
    def stale(self) -> bool:
        """Tell whether the snapshot is missing or of an earlier revision."""
        return self._revision is None or self._revision != queries.revision(self.folder)

    def row(self) -> dict[str, Any]:
        """Return what the list of studies shows; what takes long is None until ``whole`` has it."""
        found = self.outline()
        own = found.to_json() if isinstance(found, StudyProblem) else None
        kept = self._kept
        if isinstance(kept, StudyProblem):
            own = own or kept.to_json()
        times = [stamp for stamp, _ in queries.revision(self.folder)]
        when = datetime.datetime.fromtimestamp(max(times) / 1e9, datetime.UTC)
        strip = self.strip()
        return {
            **({} if isinstance(found, StudyProblem) else found),
            "id": self.id,
            "folder": str(clean(self.folder.name)),
            "name": strip["name"],
            "state": "error" if own and strip["state"] != "running" else strip["state"],
            "verdict": kept.verdict if isinstance(kept, Snapshot) else None,
            "best": kept.best if isinstance(kept, Snapshot) else None,
            "when": when.isoformat(timespec="seconds"),
            "stale": self.stale,
            "trouble": own,
        }

    def table(self, contender: str) -> ItemTable:
        """Return the control's and a contender's test items, read once a revision.

        Raises:
            BakeoffError: whatever is wrong with the study, ``no-answers``.
        """
        found = self.whole()
        if isinstance(found, StudyProblem):
            raise BakeoffError(*found)
        key, kept = (self._revision, contender), self._table
        if kept is None or kept[0] != key:
            kept = (key, ItemTable.read(self.folder, found.asked, contender))
            self._table = kept
        return kept[1]


def _phase_fields(said: dict[str, Any]) -> dict[str, Any]:
    """Return the phase's counts under names of their own: the study has counts, too."""
    return {f"phase_{k}" if k in ("done", "total") else k: v for k, v in said.items()}
