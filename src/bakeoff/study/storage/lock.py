"""Lock of a study directory: one process runs a study, and a second one is told which.

The operating system's lock on ``.lock`` decides, and is released when its process ends.
``.lock.json`` next to it names the holder; a note left by a dead process is overwritten and keeps
no other process out.
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
from bakeoff.core.names import quote_path

LOCK = ".lock"
NOTE = ".lock.json"
WAIT_SECONDS = 1.0
"""Seconds to wait for a lock that another process only tests, and for a holder's note."""


class LockHolder(NamedTuple):
    """The process that holds a study's lock, from its note; ``since`` is ISO 8601 in UTC."""

    pid: int
    host: str
    since: str

    @property
    def alive(self) -> bool | None:
        """Whether the process is alive; None if this host cannot tell."""
        if self.host != socket.gethostname() or os.name == "nt":
            return None  # on Windows os.kill ends the process whatever the signal
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True  # it exists and belongs to another user
        return True

    def __str__(self) -> str:
        states = {
            True: "that process is alive",
            False: f"no process {self.pid} here: it has just ended, or is in another container",
            None: "this machine cannot tell whether it is alive",
        }
        return f"process {self.pid} on {self.host}, since {self.since} ({states[self.alive]})"


@contextlib.contextmanager
def hold_lock(folder: Path) -> Iterator[None]:
    """Hold the study's lock.

    Raises:
        LockedError: ``study-locked``, with the holder.
    """
    lock = FileLock(folder / LOCK, timeout=WAIT_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        holder = _wait_for_holder(folder)
        who = str(holder) if holder else f"it left no {NOTE}"
        raise LockedError(
            "study-locked",
            f"Another process is running the study in {folder}: {who}.",
            f"`bakeoff status {quote_path(folder)}`, or wait until it has ended.",
        ) from error
    note = folder / NOTE
    try:
        files.atomic_write_text(note, json.dumps(_this_process()._asdict()) + "\n")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def current_holder(folder: Path) -> LockHolder | None:
    """Return the current holder of the study's lock; None if it is free or cannot be tested."""
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return _wait_for_holder(folder) or LockHolder(0, "(unknown)", "(unknown)")
    except OSError:
        return None  # the user may only read this folder
    lock.release()
    return None


def read_holder(folder: Path) -> LockHolder | None:
    """Return the holder that the note names, without testing the lock."""
    return _read_note(folder / NOTE)


def _this_process() -> LockHolder:
    now = now_utc()
    return LockHolder(os.getpid(), socket.gethostname(), now)


def _wait_for_holder(folder: Path) -> LockHolder | None:
    """Read the note, and wait for the holder to overwrite one that a dead process left."""
    until = time.monotonic() + WAIT_SECONDS
    while True:
        holder = _read_note(folder / NOTE)
        if (holder is not None and holder.alive is not False) or time.monotonic() > until:
            return holder
        time.sleep(0.05)


def _read_note(note: Path) -> LockHolder | None:
    try:
        return LockHolder(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
