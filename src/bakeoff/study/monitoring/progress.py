"""What a study says while it runs; the CLI draws it, a library user may ignore it.

``Logged`` stands between the study and whoever listens: it keeps events in ``log.jsonl`` and what
is in flight in ``now.json``, which is there while a process runs the study and is synced by nobody:
it says what goes on, nothing is gone on from.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bakeoff.core.clock import now_utc
from bakeoff.core.redact import redact_value
from bakeoff.core.safe_read import CONFIG_BYTES, UnreadableFile, read_json

LOG, NOW = "log.jsonl", "now.json"
LAST_BYTES = 65_536
"""The end of the log in which its last whole line is looked for."""


@dataclass(frozen=True)
class Job:
    """A piece of work in flight: trials that share steps, or one probe.

    ``what`` is ``search``, ``final``, ``cost probe``, ``base`` or ``reload``. ``trials`` are ids,
    one a lane; ``start`` and ``stop`` are steps, None where nothing is trained towards a step.
    """

    what: str
    method: str
    title: str
    trials: tuple[str, ...] = ()
    start: int | None = None
    stop: int | None = None


class Progress(Protocol):
    """Hears of phases, of finished pieces of work, and of things worth a line."""

    def phase(self, title: str, total: int, done: int) -> None:
        """A phase of ``total`` pieces begins; ``done`` of them are there from an earlier run."""

    def advance(self, what: str) -> None:
        """One piece of the phase is done."""

    def say(self, text: str) -> None:
        """Something happened that the user should read."""


@runtime_checkable
class Watcher(Protocol):
    """What a listener may hear beside: which work is in flight."""

    def begun(self, work: Job) -> None:
        """A piece of work begins."""

    def ended(self, work: Job) -> None:
        """It is over, and what it gave is written."""


def begun(progress: Progress, work: Job) -> None:
    """Tell that work begins, where that is listened to."""
    if isinstance(progress, Watcher):
        progress.begun(work)


def ended(progress: Progress, work: Job) -> None:
    """Tell that work is over, where that is listened to."""
    if isinstance(progress, Watcher):
        progress.ended(work)


def with_events(
    progress: Progress, works: Sequence[Job], payloads: Iterable[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Give payloads, and tell of each one's work when it is taken: executors take none early."""
    for work, payload in zip(works, payloads, strict=True):
        begun(progress, work)
        yield payload


class Silent:
    """Says nothing."""

    def phase(self, title: str, total: int, done: int) -> None:
        """Ignore it."""

    def advance(self, what: str) -> None:
        """Ignore it."""

    def say(self, text: str) -> None:
        """Ignore it."""


class LoggingProgress:
    """Writes each event as a line of ``log.jsonl``, secrets left out, then passes it on.

    Beside it ``now.json`` says what is in flight: ``pid``, ``phase`` and ``works``. Whoever listens
    may go away, a closed terminal or a pipe's reader: the study goes on unheard.
    """

    def __init__(self, path: Path, inner: Progress) -> None:
        self._path = path
        self._inner = inner
        self._phase: dict[str, Any] = {}
        self._works: dict[Job, str] = {}

    def phase(self, title: str, total: int, done: int) -> None:
        """Log a phase."""
        self._log("phase", title=title, total=total, done=done)
        self._phase = {"title": title, "total": total, "before": done, "done": done}
        self._phase["since"] = now_utc("milliseconds")
        self._works.clear()
        self._note()
        self._pass_on(lambda heard: heard.phase(title, total, done))

    def advance(self, what: str) -> None:
        """Log a finished piece."""
        self._log("advance", what=what)
        self._phase["done"] = self._phase.get("done", 0) + 1
        self._note()
        self._pass_on(lambda heard: heard.advance(what))

    def say(self, text: str) -> None:
        """Log a line."""
        self._log("say", text=text)
        self._pass_on(lambda heard: heard.say(text))

    def begun(self, work: Job) -> None:
        """Note work in flight."""
        self._works[work] = now_utc("milliseconds")
        self._note()
        self._pass_on(lambda heard: begun(heard, work))

    def ended(self, work: Job) -> None:
        """Note that work is over."""
        self._works.pop(work, None)
        self._note()
        self._pass_on(lambda heard: ended(heard, work))

    def close(self) -> None:
        """Remove the note of what is in flight: nothing is, any more."""
        with contextlib.suppress(OSError):
            if self._phase:  # else it is another process's
                self._path.with_name(NOW).unlink(missing_ok=True)

    def _pass_on(self, tell: Callable[[Progress], None]) -> None:
        try:
            tell(self._inner)
        except OSError:
            self._inner = Silent()

    def _log(self, event: str, **values: object) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": now_utc("milliseconds"), "event": event, **redact_value(values)}) + "\n")

    def _note(self) -> None:
        """Write what is in flight; a full disk is met where it matters, not here."""
        works = [{**asdict(work), "since": since} for work, since in self._works.items()]
        value = {"pid": os.getpid(), "phase": self._phase, "works": works}
        path = self._path.with_name(NOW)
        half = path.with_name(f".{NOW}.part")
        with contextlib.suppress(OSError):
            half.write_text(json.dumps(redact_value(value)) + "\n", encoding="utf-8")
            half.replace(path)


def read_current_work(folder: Path, pid: int) -> dict[str, Any]:
    """Return what the process noted of its work: ``phase`` and ``works``; {} where it did not."""
    try:
        found = read_json(folder / NOW, CONFIG_BYTES)
    except (OSError, UnreadableFile):
        return {}
    return found if isinstance(found, dict) and found.get("pid") == pid else {}


def read_last_event(folder: Path) -> dict[str, Any] | None:
    """Return the last whole line of a study's log, None where there is none."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    return None
