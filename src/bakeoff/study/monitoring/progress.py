"""Progress events of a running study: the listener class, its log and the jobs in progress."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bakeoff.core.clock import now_utc
from bakeoff.core.files import atomic_write_text
from bakeoff.core.redact import redact_value
from bakeoff.core.safe_read import CONFIG_BYTES, UnreadableFile, read_json

LOG, NOW = "log.jsonl", "now.json"
LAST_BYTES = 65_536
"""How many bytes at the end of the log are searched for its last whole line."""


@dataclass(frozen=True)
class Job:
    """One unit of work in progress: trials that share their steps, or one probe.

    ``what`` is the phase, ``cost probe``, ``base``, ``reload`` or ``head check``. ``trials`` are
    trial ids, one a lane. ``start`` and ``stop`` are steps, None where nothing is trained.
    """

    what: str
    method: str
    title: str
    trials: tuple[str, ...] = ()
    start: int | None = None
    stop: int | None = None


class Progress:
    """A listener for the progress of a study. Every method does nothing unless overridden."""

    def phase(self, title: str, total: int, done: int) -> None:
        """Start a phase of ``total`` pieces; ``done`` of them are from an earlier run."""

    def advance(self, what: str) -> None:
        """Count one finished piece of the phase."""

    def say(self, text: str) -> None:
        """Show a message that the user should read."""

    def warn(self, warnings: Sequence[str]) -> None:
        """Show warnings; a listener that draws may rank and shorten them."""
        for warning in warnings:
            self.say(f"warning: {warning}")

    def on_start(self, job: Job) -> None:
        """Handle the start of a job."""

    def on_end(self, job: Job) -> None:
        """Handle the end of a job, after its results were written."""


def with_events(
    progress: Progress, jobs: Sequence[Job], payloads: Iterable[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield the payloads; report the start of each one's job when an executor takes it.

    Executors take a payload only when its work can begin, so the event is on time.
    """
    for job, payload in zip(jobs, payloads, strict=True):
        progress.on_start(job)
        yield payload


class LoggingProgress(Progress):
    """A listener that logs each event to ``log.jsonl`` without secrets, then forwards it.

    ``now.json`` in the same folder lists the jobs in progress: ``pid``, ``phase`` and ``works``. It
    exists only while a process runs the study, and no run resumes from it. The listener ``inner``
    may fail with an ``OSError`` (a closed terminal or pipe): it is dropped and the study continues.
    """

    def __init__(self, path: Path, inner: Progress) -> None:
        self._path = path
        self._inner = inner
        self._phase: dict[str, Any] = {}
        self._jobs: dict[Job, str] = {}

    def phase(self, title: str, total: int, done: int) -> None:
        """Log a phase."""
        self._log("phase", title=title, total=total, done=done)
        self._phase = {"title": title, "total": total, "before": done, "done": done}
        self._phase["since"] = now_utc("milliseconds")
        self._jobs.clear()
        self._write_now()
        self._forward("phase", title, total, done)

    def advance(self, what: str) -> None:
        """Log a finished piece."""
        self._log("advance", what=what)
        self._phase["done"] = self._phase.get("done", 0) + 1
        self._write_now()
        self._forward("advance", what)

    def say(self, text: str) -> None:
        """Log a message."""
        self._log("say", text=text)
        self._forward("say", text)

    def warn(self, warnings: Sequence[str]) -> None:
        """Log each warning as a message."""
        for warning in warnings:
            self._log("say", text=f"warning: {warning}")
        if hasattr(self._inner, "warn"):
            self._forward("warn", warnings)
            return
        for warning in warnings:
            self._forward("say", f"warning: {warning}")

    def on_start(self, job: Job) -> None:
        """Add a job to ``now.json``."""
        self._jobs[job] = now_utc("milliseconds")
        self._write_now()
        self._forward("on_start", job)

    def on_end(self, job: Job) -> None:
        """Remove a job from ``now.json``."""
        self._jobs.pop(job, None)
        self._write_now()
        self._forward("on_end", job)

    def close(self) -> None:
        """Delete ``now.json``: no job is in progress any more."""
        with contextlib.suppress(OSError):
            if self._phase:  # without a phase the file belongs to another process
                self._path.with_name(NOW).unlink(missing_ok=True)

    def _forward(self, event: str, *values: object) -> None:
        # a user's own listener need not derive from Progress: it may lack warn, on_start and on_end
        handler = getattr(self._inner, event, None)
        if handler is None:
            return
        try:
            handler(*values)
        except OSError:
            self._inner = Progress()

    def _log(self, event: str, **values: object) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(
                json.dumps(
                    {"time": now_utc("milliseconds"), "event": event, **redact_value(values)}
                )
                + "\n"
            )

    def _write_now(self) -> None:
        """Write ``now.json``. A full disk is ignored here; writing results reports it."""
        works = [{**asdict(job), "since": since} for job, since in self._jobs.items()]
        value = {"pid": os.getpid(), "phase": self._phase, "works": works}
        text = json.dumps(redact_value(value)) + "\n"
        with contextlib.suppress(OSError):
            atomic_write_text(self._path.with_name(NOW), text, durable=False)


def read_current_work(folder: Path, pid: int) -> dict[str, Any]:
    """Return ``phase`` and ``works`` as process ``pid`` wrote them; empty if it wrote none."""
    try:
        value = read_json(folder / NOW, CONFIG_BYTES)
    except (OSError, UnreadableFile):
        return {}
    return value if isinstance(value, dict) and value.get("pid") == pid else {}


def read_last_event(folder: Path) -> dict[str, Any] | None:
    """Return the last whole line of a study's log, or None."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                return event
    return None
