"""What a study says while it runs; the CLI draws it, a library user may ignore it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from bakeoff.outward import redacted


class Progress(Protocol):
    """Hears of phases, of finished pieces of work, and of things worth a line."""

    def phase(self, title: str, total: int, done: int) -> None:
        """A phase of ``total`` pieces begins; ``done`` of them are there from an earlier run."""

    def advance(self, what: str) -> None:
        """One piece of the phase is done."""

    def say(self, text: str) -> None:
        """Something happened that the user should read."""


class Silent:
    """Says nothing."""

    def phase(self, title: str, total: int, done: int) -> None:
        """Ignore it."""

    def advance(self, what: str) -> None:
        """Ignore it."""

    def say(self, text: str) -> None:
        """Ignore it."""


class Logged:
    """Writes each event as a line of ``log.jsonl``, secrets left out, then passes it on.

    Whoever listens may go away, a closed terminal or a pipe's reader: the study goes on unheard.
    """

    def __init__(self, path: Path, inner: Progress) -> None:
        self._path = path
        self._inner = inner

    def phase(self, title: str, total: int, done: int) -> None:
        """Log a phase."""
        self._log("phase", title=title, total=total, done=done)
        self._pass_on(lambda heard: heard.phase(title, total, done))

    def advance(self, what: str) -> None:
        """Log a finished piece."""
        self._log("advance", what=what)
        self._pass_on(lambda heard: heard.advance(what))

    def say(self, text: str) -> None:
        """Log a line."""
        self._log("say", text=text)
        self._pass_on(lambda heard: heard.say(text))

    def _pass_on(self, tell: Callable[[Progress], None]) -> None:
        try:
            tell(self._inner)
        except OSError:
            self._inner = Silent()

    def _log(self, event: str, **values: object) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": now, "event": event, **redacted(values)}) + "\n")
