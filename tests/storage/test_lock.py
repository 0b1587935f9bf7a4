"""The study's lock: one runs, the other is told who; a dead holder's note keeps nobody out."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from helpers.command import Started, bakeoff

from bakeoff.core.errors import LockedError
from bakeoff.study.storage import lock

HOLD = """
import sys, time
from pathlib import Path
from bakeoff.study.storage.lock import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Have another process hold the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_second_runner_told_holder(tmp_path: Path) -> None:
    """The second runner is told who holds the lock.

    Fault 20: one of two runners works, the other is refused with pid, host and since.
    """
    with hold(tmp_path) as process:
        with pytest.raises(LockedError) as error, lock.hold_lock(tmp_path):
            pass
        assert (error.value.code, error.value.exit_code) == ("study-locked", 5)
        assert f"process {process.pid} on {socket.gethostname()}, since 20" in error.value.cause
        assert "alive" in error.value.cause
        running = lock.current_holder(tmp_path)
        assert running is not None
        assert (running.pid, running.alive) == (process.pid, True)
        process.kill()
    assert datetime.fromisoformat(running.since).utcoffset() is not None


def test_stale_lock_note_ignored(tmp_path: Path) -> None:
    """A lock ends with its process, and its note blocks no other runner.

    Faults 4 and 18: after kill -9 the note is still there, and the next runner is let in.
    """
    with hold(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
    assert json.loads((tmp_path / lock.NOTE).read_text())["pid"] == process.pid
    assert lock.current_holder(tmp_path) is None
    with lock.hold_lock(tmp_path):
        assert json.loads((tmp_path / lock.NOTE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / lock.NOTE).exists()


@pytest.mark.parametrize("note", ["{", '{"pid": 1}', None])
def test_lock_without_readable_note(tmp_path: Path, note: str | None) -> None:
    """Without a readable note, the lock still decides."""
    with lock.hold_lock(tmp_path):
        (tmp_path / lock.NOTE).unlink()
        if note is not None:
            (tmp_path / lock.NOTE).write_text(note)
        with pytest.raises(LockedError, match="it left no .lock.json"), lock.hold_lock(tmp_path):
            pass


def test_liveness_known_on_same_host() -> None:
    """Whether a holder is alive is reported for this host only."""
    here = socket.gethostname()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert lock.LockHolder(os.getpid(), here, "").alive is True
    assert lock.LockHolder(gone.pid, here, "").alive is False
    assert lock.LockHolder(os.getpid(), "elsewhere", "").alive is None


def test_two_runners_of_one_study(study_values: dict[str, Any], tmp_path: Path) -> None:
    """Fault 20, through the command line: one runs to its end, the other exits with 5."""
    study = tmp_path / "study.toml"
    study.write_text(tomli_w.dumps(study_values))
    arguments = ("run", str(study), "--out", str(tmp_path / "out"))
    first = Started(*arguments, cwd=tmp_path)
    until = time.monotonic() + 120
    while not (tmp_path / "out" / lock.NOTE).exists() and time.monotonic() < until:
        time.sleep(0.02)
    second = bakeoff(*arguments, cwd=tmp_path)
    assert (first.end().returncode, second.returncode) == (0, 5)
    said = " ".join(second.stderr.split())
    assert "study-locked" in said
    assert f"process {first.pid} on {socket.gethostname()}, since" in said
    assert "Try:" in second.stderr
