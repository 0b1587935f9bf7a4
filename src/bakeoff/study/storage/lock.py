"""The study's lock: one process runs a study, and whoever comes second is told who that is.

Held by ``api`` for as long as it writes. The operating system's lock on ``.lock`` alone decides: it
goes with its process, however that ends. ``.lock.json`` beside it says who holds it; a note that
was left by a dead process is overwritten, and never keeps anybody out.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from bakeoff.core import files
from bakeoff.core.clock import now_utc
from bakeoff.core.errors import LockedError

LOCK = ".lock"
NOTE = ".lock.json"
WAIT_SECONDS = 1.0
"""Seconds that a moment's lock (``doctor`` asking who runs a study) is waited for, and a note."""


class LockHolder(NamedTuple):
    """Who holds a study's lock, as the note says; ``since`` is ISO 8601 in UTC."""

    pid: int
    host: str
    since: str

    @property
    def alive(self) -> bool | None:
        """Whether the process lives; None where that cannot be seen from here."""
        if self.host != socket.gethostname() or os.name == "nt":
            return None  # Windows takes os.kill for what it says
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True  # it is there, and somebody else's
        return True

    def __str__(self) -> str:
        words = {
            True: "that process is alive",
            False: f"no process {self.pid} is seen here: in another container, or just ended",
            None: "whether it is alive cannot be seen from here",
        }
        return f"process {self.pid} on {self.host}, since {self.since} ({words[self.alive]})"


@contextlib.contextmanager
def hold_lock(folder: Path) -> Iterator[None]:
    """Hold the study's lock.

    Raises:
        LockedError: ``study-locked``, with who holds it.
    """
    lock = FileLock(folder / LOCK, timeout=WAIT_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        holder = _wait_for_holder(folder)
        who = str(holder) if holder else f"no {NOTE} says which"
        raise LockedError(
            "study-locked",
            f"Another process is running the study in {folder}: {who}.",
            f"`bakeoff status {folder}`, or wait until it has ended.",
        ) from error
    note = folder / NOTE
    try:
        files.atomic_write_text(note, json.dumps(_this_process()._asdict()) + "\n")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def current_holder(folder: Path) -> LockHolder | None:
    """Return who holds the study's lock now, None where nobody does, or none can be taken there."""
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return _wait_for_holder(folder) or LockHolder(0, "(unknown)", "(unknown)")
    except OSError:
        return None  # a folder that this user only reads
    lock.release()
    return None


def read_holder(folder: Path) -> LockHolder | None:
    """Return who holds the lock by the note alone: for a process that knows that it is held."""
    return _read_note(folder / NOTE)


def _this_process() -> LockHolder:
    now = now_utc()
    return LockHolder(os.getpid(), socket.gethostname(), now)


def _wait_for_holder(folder: Path) -> LockHolder | None:
    """Read the note; one of a dead process may be about to be overwritten by who has the lock."""
    until = time.monotonic() + WAIT_SECONDS
    while True:
        found = _read_note(folder / NOTE)
        if (found is not None and found.alive is not False) or time.monotonic() > until:
            return found
        time.sleep(0.05)


def _read_note(note: Path) -> LockHolder | None:
    try:
        return LockHolder(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
