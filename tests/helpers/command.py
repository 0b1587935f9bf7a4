"""The command line in a process of its own, without waiting for torch to be imported each time.

What runs is `bakeoff.cli.main`, in a process that the warm fork server of this test run makes; its
workers come from the same server, as they come from one of its own where a user runs it. Signals,
exit codes, files and streams are those of any process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path

from bakeoff.core.jobs import PRELOAD
from bakeoff.study.executors.process import _without_main_module

CONTEXT = multiprocessing.get_context("forkserver")
SERVER = forkserver._forkserver  # type: ignore[attr-defined]


def warm_up() -> None:
    """Start the fork server; it imports while tests go on."""
    CONTEXT.set_forkserver_preload([*PRELOAD, "bakeoff.cli", "bakeoff.api"])
    SERVER.ensure_running()


class Started:
    """A command that runs; leader of a process group."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self.arguments = arguments
        handles, self._streams = zip(
            *(tempfile.mkstemp(suffix=f".{name}") for name in ("out", "err")), strict=True
        )
        for handle in handles:
            os.close(handle)
        self._process = CONTEXT.Process(
            target=_run, args=(arguments, str(cwd), dict(os.environ), *self._streams)
        )
        with _without_main_module():
            self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def signal_all(self, sent: signal.Signals) -> None:
        """Send a signal to the process group, as a terminal does; nothing where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            while self.poll() is None and os.getpgid(self.pid) != self.pid:
                time.sleep(0.001)  # it is about to lead a group of its own
            os.killpg(self.pid, sent)

    def end(self, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        """Wait for its end; return what it said."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self.arguments, timeout or 0.0)
        out, err = (Path(name).read_text(encoding="utf-8") for name in self._streams)
        for name in self._streams:
            Path(name).unlink()
        return subprocess.CompletedProcess(self.arguments, code, out, err)


def bakeoff(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return Started(*arguments, cwd=cwd).end()


def _run(arguments: tuple[str, ...], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):  # the server has its own manners
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number, name in ((1, out), (2, err)):
        handle = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    SERVER.ensure_running = lambda: None  # the one that made this process is there
    sys.argv = ["bakeoff", *arguments]
    from bakeoff.cli import main

    main()
