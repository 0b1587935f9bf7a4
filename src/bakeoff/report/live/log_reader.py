"""What a study said last: its phase, how far that is, and when it should end, from ``log.jsonl``.

Read by ``feed`` as the file grows: each look reads what was added since the one before.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from bakeoff.core.names import is_within
from bakeoff.report.sanitize import clean

MAX_BYTES = 8 * 2**20
"""Bytes read at once; of a longer log the end."""
MIN_FINISHED = 2
"""Finished pieces of a phase from which an end can be foretold."""


class LogReader:
    """The events of one log, added up."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "log.jsonl"
        self._folder = folder
        self._at = 0
        self._said: str | None = None
        self._begin("", 0, 0, None)

    def _begin(self, title: str, total: int, done: int, time: str | None) -> None:
        self._title, self._total, self._before, self._done = title, total, done, done
        self._since, self._last = _parse_time(time), _parse_time(time)

    def look(self) -> dict[str, Any]:
        """Read what is new; return ``phase``, ``done``, ``total``, ``said``, ``seconds_left``."""
        for line in self._new():
            self._hear(line)
        left = self._seconds_left()
        phase = self._title or None
        said = {"phase": phase, "done": self._done, "total": self._total, "said": self._said}
        return {**clean(said), "seconds_left": left}

    def _new(self) -> list[bytes]:
        try:
            if not is_within(self._path, self._folder):
                return []
            size = self._path.stat().st_size
            if size < self._at:  # another file
                self._at = 0
            with self._path.open("rb") as file:
                file.seek(max(self._at, size - MAX_BYTES))
                text = file.read(MAX_BYTES)
                end = text.rfind(b"\n") + 1
                self._at = file.tell() - len(text) + end
        except OSError:
            return []
        return text[:end].splitlines()

    def _hear(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind, time = event.get("event"), event.get("time")
            if kind == "phase":
                self._begin(str(event["title"]), int(event["total"]), int(event["done"]), time)
            elif kind == "advance":
                self._done += 1
                self._last = _parse_time(time)
            elif kind == "say":
                self._said = str(event["text"])[:500]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return  # a line that was half written, or is no event

    def _seconds_left(self) -> float | None:
        made, left = self._done - self._before, self._total - self._done
        if made < MIN_FINISHED or left <= 0 or self._since is None or self._last is None:
            return None
        try:
            return max(0.0, (self._last - self._since).total_seconds() / made * left)
        except TypeError:  # one of them without its zone
            return None


def _parse_time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except (ValueError, TypeError):
        return None
