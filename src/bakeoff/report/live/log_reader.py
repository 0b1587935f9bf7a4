"""Read a study's phase, progress and last message from ``log.jsonl`` as the file grows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bakeoff.core.names import is_within
from bakeoff.report.sanitize import clean

MAX_BYTES = 8 * 2**20
"""Maximum number of bytes read at once; of a longer log, its end is read."""


class LogReader:
    """The current state of one log, updated incrementally."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "log.jsonl"
        self._folder = folder
        self._at = 0
        self._message: str | None = None
        self._title, self._total, self._done = "", 0, 0

    def update(self) -> dict[str, Any]:
        """Read new events; return ``phase``, ``done``, ``total`` and ``message``."""
        for line in self._new_lines():
            self._apply(line)
        phase = self._title or None
        state = {"phase": phase, "done": self._done, "total": self._total, "message": self._message}
        cleaned: dict[str, Any] = clean(state)
        return cleaned

    def _new_lines(self) -> list[bytes]:
        try:
            if not is_within(self._path, self._folder):
                return []
            size = self._path.stat().st_size
            if size < self._at:  # the file was replaced
                self._at = 0
            with self._path.open("rb") as file:
                file.seek(max(self._at, size - MAX_BYTES))
                text = file.read(MAX_BYTES)
                end = text.rfind(b"\n") + 1
                self._at = file.tell() - len(text) + end
        except OSError:
            return []
        return text[:end].splitlines()

    def _apply(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind = event.get("event")
            if kind == "phase":
                title, total, done = str(event["title"]), int(event["total"]), int(event["done"])
                self._title, self._total, self._done = title, total, done
            elif kind == "advance":
                self._done += 1
            elif kind == "say":
                self._message = str(event["text"])[:500]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return  # an incomplete line, or not an event
