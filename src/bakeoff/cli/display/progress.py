"""Progress display: a block that is redrawn in a terminal, plain lines when piped.

The block shows the same status as ``bakeoff status``. The status is read from the study folder
only after an event, and reading takes at most one twentieth of the time.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live as Redrawn

from bakeoff.cli.display import status_block
from bakeoff.cli.display.output import escape_text
from bakeoff.cli.display.warning_lines import show_warnings
from bakeoff.core.format import format_duration
from bakeoff.study.monitoring.progress import Job, Progress

if TYPE_CHECKING:
    from bakeoff.study.monitoring.progress_estimate import PhaseProgress
    from bakeoff.study.monitoring.status import StudyStatus

REDRAWS_PER_SECOND = 4
"""Upper limit."""
READ_INTERVAL_FACTOR = 20.0
"""After a reading of the folder, the next one waits this many times as long as it took."""
QUIET_SECONDS = 60.0
"""Piped output gets a status line after this time without any other line."""


def can_redraw(console: Console) -> bool:
    """Return whether the console is a terminal that can redraw a block."""
    dumb = console.is_dumb_terminal or bool(os.environ.get("NO_COLOR"))
    return console.is_terminal and not dumb and console.file.isatty()


class LiveProgress(Progress):
    """Progress events of a running study, shown in a console.

    ``folder`` is the study folder whose status is shown; None shows the phase only. Warnings are
    collected and printed together, the most important first: before the first phase of a study, or
    at the end without a folder. ``verbose`` prints all of them, and ``warned`` holds those printed.
    """

    def __init__(self, console: Console, folder: Path | None = None, verbose: bool = False) -> None:
        self._console, self._folder, self._verbose = console, folder, verbose
        self._warnings: list[str] = []
        self.warned: list[str] = []
        self._title, self._total, self._done, self._before = "", 0, 0, 0
        self._phase_start = self._last_output = time.monotonic()
        self._jobs: dict[Job, float] = {}
        self._counted = 0
        self._status: StudyStatus | None = None
        self._stale, self._next_read, self._read_at = False, 0.0, 0.0
        self._closed = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="bakeoff-progress", daemon=True)
        self._display: Redrawn | None = None
        if can_redraw(console):
            self._display = Redrawn(
                console=console, get_renderable=self._draw, refresh_per_second=REDRAWS_PER_SECOND,
                transient=True, redirect_stdout=False,
            )  # fmt: skip

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._display is not None:
            self._display.start()
        else:
            self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop drawing, so that an error prints below the last line."""
        self._closed.set()
        with contextlib.suppress(OSError):  # the terminal may be gone
            self._close_phase()
            self._print_warnings()
            if self._display is not None:
                self._display.stop()
        if self._ticker.is_alive():
            self._ticker.join()

    def phase(self, title: str, total: int, done: int) -> None:
        """Start a phase."""
        self._close_phase()
        if self._folder is not None:
            self._print_warnings()
        self._title, self._total, self._done, self._before = title, total, done, done
        self._phase_start = time.monotonic()
        self._jobs.clear()
        self._stale = True
        if self._display is None:
            before = f", {done} done before" if done else ""
            self._print(f"{title}: {total}{before}")

    def advance(self, what: str) -> None:
        """Count one finished piece; the pieces of a group are printed when the group ends."""
        self._done += 1
        self._counted += 1
        self._stale = True
        if self._display is None and not self._jobs:
            self._print_piece(what, self._phase_start)

    def on_start(self, work: Job) -> None:
        """Show a job that starts."""
        self._jobs[work] = time.monotonic()
        self._counted = 0
        self._stale = True

    def on_end(self, work: Job) -> None:
        """Print a job that ended; print nothing if its trials are rescheduled."""
        since = self._jobs.pop(work, self._phase_start)
        self._stale = True
        if self._display is None and self._counted:
            trials = len(work.trials)
            many = f", {trials} trials" if trials > 1 else ""
            to = f" to step {work.stop}" if work.stop is not None else ""
            self._print_piece(f"{work.title}{many}{to}", since)
        self._counted = 0

    def say(self, text: str) -> None:
        """Print a line above the block."""
        self._print(text)

    def warn(self, warnings: Sequence[str]) -> None:
        """Collect warnings, to print them together."""
        self._warnings += warnings

    def _print_warnings(self) -> None:
        where = "`--verbose` prints them"
        where += "." if self._folder is None else "; the report has them all."
        self.warned += show_warnings(
            self._console, self._warnings, where, shown=self.warned, verbose=self._verbose
        )
        self._warnings.clear()

    def _print(self, text: str) -> None:
        self._last_output = time.monotonic()
        self._console.print(escape_text(text), soft_wrap=True)

    def _print_piece(self, what: str, since: float) -> None:
        seconds = time.monotonic() - since
        self._print(f"  {self._title} {self._done}/{self._total} {what} ({seconds:.0f} s)")

    def _close_phase(self) -> None:
        """In a terminal, replace the block of a finished phase by one line."""
        if self._display is not None and self._title and self._done > self._before:
            took = format_duration(time.monotonic() - self._phase_start)
            self._print(f"{self._title}: {self._done} of {self._total}, {took}")
        self._title = ""

    def _read_status(self) -> StudyStatus | None:
        """Return the study's status, read again if it may have changed and the interval is over."""
        now = time.monotonic()
        if self._folder is None or not self._stale or now < self._next_read:
            return self._status
        from bakeoff.study.monitoring.status import read_status

        self._stale = False
        try:
            self._status = read_status(self._folder, mine=True)
        except Exception:  # the study itself reports any problem with its folder
            self._status = None
        took = time.monotonic() - now
        self._read_at = now
        self._next_read = now + max(1.0 / REDRAWS_PER_SECOND, READ_INTERVAL_FACTOR * took)
        return self._status

    def _draw(self) -> RenderableType:
        """Return the block; rich calls this from its own thread and whenever a line is printed."""
        if not self._title:
            return Group()
        status, later = self._read_status(), time.monotonic() - self._read_at
        width, height = self._console.width, self._console.height
        try:
            if status is not None and status.phase is not None:
                return status_block.render_status(status, width, later, height - 1)
        except Exception:  # drawing must not end a study
            self._status = None
        return status_block.render_phase(self._phase_progress(), width, None)

    def _phase_progress(self) -> PhaseProgress:
        from bakeoff.study.monitoring.progress_estimate import PhaseProgress

        seconds = time.monotonic() - self._phase_start
        return PhaseProgress(self._title, self._done, self._total, self._before, seconds)

    def _tick(self) -> None:
        """Print a status line whenever nothing else was printed for a while."""
        while not self._closed.wait(
            max(0.05, self._last_output + QUIET_SECONDS - time.monotonic())
        ):
            if self._title and time.monotonic() - self._last_output >= QUIET_SECONDS:
                try:
                    self._print(self._status_line())
                except OSError:
                    return  # the output was closed

    def _status_line(self) -> str:
        status = self._read_status()
        head = f"  {self._title} {self._done}/{self._total}"
        if status is None:
            return head
        later = time.monotonic() - self._read_at
        running = "; ".join(map(status_block.describe_job, status.works[: status_block.MAX_JOBS]))
        left = status_block.remaining_seconds(status.phase_seconds_left, later)
        parts = [
            running and f"running: {running}",
            status_block.describe_speed(status),
            "" if left is None else f"about {format_duration(left)} left",
            status_block.describe_study_remaining(status, later),
            status_block.summarize_methods(status),
        ]
        return " | ".join([head, *(part for part in parts if part)])
