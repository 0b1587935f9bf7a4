"""Progress for people: a block that is redrawn in a terminal, plain lines when piped.

The block shows what ``bakeoff status`` shows. It is read from the study's folder, never more often
than that costs one twentieth of the time, and only after something has happened.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live as Redrawn

from bakeoff.cli.display import status_block
from bakeoff.cli.display.output import escape_text
from bakeoff.core.format import format_duration

if TYPE_CHECKING:
    from bakeoff.study.monitoring.progress import Work
    from bakeoff.study.monitoring.progress_estimate import Phase
    from bakeoff.study.monitoring.status import Glance

REDRAWS_PER_SECOND = 4
"""A second, at most."""
READ_INTERVAL_FACTOR = 20.0
"""So many times as long as a look at the folder took, none is taken again."""
QUIET_SECONDS = 60.0
"""Seconds without a line after which piped output gets one that says what goes on."""


def can_redraw(console: Console) -> bool:
    """Tell whether a block may be drawn over and over: in a terminal that understands that."""
    dumb = console.is_dumb_terminal or bool(os.environ.get("NO_COLOR"))
    return console.is_terminal and not dumb and console.file.isatty()


class LiveProgress:
    """Draws what a study says while it runs; ``folder`` is the study's, if it may be looked at."""

    def __init__(self, console: Console, folder: Path | None = None) -> None:
        self._console, self._folder = console, folder
        self._title, self._total, self._done, self._before = "", 0, 0, 0
        self._began = self._spoke = time.monotonic()
        self._works: dict[Work, float] = {}
        self._counted = 0
        self._glance: Glance | None = None
        self._stale, self._may_look, self._looked = False, 0.0, 0.0
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="bakeoff-progress", daemon=True)
        self._drawn: Redrawn | None = None
        if can_redraw(console):
            self._drawn = Redrawn(
                console=console, get_renderable=self._draw, refresh_per_second=REDRAWS_PER_SECOND,
                transient=True, redirect_stdout=False,
            )  # fmt: skip

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._drawn is not None:
            self._drawn.start()
        else:
            self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop drawing, so that an error prints below what was said."""
        self._over.set()
        with contextlib.suppress(OSError):  # the terminal may be gone
            self._close_phase()
            if self._drawn is not None:
                self._drawn.stop()
        if self._ticker.is_alive():
            self._ticker.join()

    def phase(self, title: str, total: int, done: int) -> None:
        """Begin a phase."""
        self._close_phase()
        self._title, self._total, self._done, self._before = title, total, done, done
        self._began = time.monotonic()
        self._works.clear()
        self._stale = True
        if self._drawn is None:
            there = f", {done} done before" if done else ""
            self._print(f"{title}: {total}{there}")

    def advance(self, what: str) -> None:
        """Count one piece; those of a group are told of when it ends."""
        self._done += 1
        self._counted += 1
        self._stale = True
        if self._drawn is None and not self._works:
            self._piece(what, self._began)

    def begun(self, work: Work) -> None:
        """Show work that begins."""
        self._works[work] = time.monotonic()
        self._counted = 0
        self._stale = True

    def ended(self, work: Work) -> None:
        """Show what is over; nothing is said where its trials are carried again."""
        since = self._works.pop(work, self._began)
        self._stale = True
        if self._drawn is None and self._counted:
            trials = len(work.trials)
            many = f", {trials} trials" if trials > 1 else ""
            to = f" to step {work.stop}" if work.stop is not None else ""
            self._piece(f"{work.title}{many}{to}", since)
        self._counted = 0

    def say(self, text: str) -> None:
        """Print a line above the block."""
        self._print(text)

    def _print(self, text: str) -> None:
        self._spoke = time.monotonic()
        self._console.print(escape_text(text), soft_wrap=True)

    def _piece(self, what: str, since: float) -> None:
        seconds = time.monotonic() - since
        self._print(f"  {self._title} {self._done}/{self._total} {what} ({seconds:.0f} s)")

    def _close_phase(self) -> None:
        """Leave a line for a phase that has gone through, in a terminal: its block goes."""
        if self._drawn is not None and self._title and self._done > self._before:
            took = format_duration(time.monotonic() - self._began)
            self._print(f"{self._title}: {self._done} of {self._total}, {took}")
        self._title = ""

    def _look(self) -> Glance | None:
        """Return the last look at the folder, a new one where that is worth it."""
        now = time.monotonic()
        if self._folder is None or not self._stale or now < self._may_look:
            return self._glance
        from bakeoff.study.monitoring.status import glance

        self._stale = False
        try:
            self._glance = glance(self._folder, mine=True)
        except Exception:  # what is wrong with the folder the study will meet itself
            self._glance = None
        took = time.monotonic() - now
        self._looked, self._may_look = (
            now,
            now + max(1.0 / REDRAWS_PER_SECOND, READ_INTERVAL_FACTOR * took),
        )
        return self._glance

    def _draw(self) -> RenderableType:
        """Return the block; called by rich from its own thread, and wherever a line is printed."""
        if not self._title:
            return Group()
        found, later = self._look(), time.monotonic() - self._looked
        width, height = self._console.width, self._console.height
        try:
            if found is not None and found.phase is not None:
                return status_block.render_status(found, width, later, height - 1)
        except Exception:  # drawing must not end a study
            self._glance = None
        return status_block.render_phase(self._at_hand(), width, None)

    def _at_hand(self) -> Phase:
        from bakeoff.study.monitoring.progress_estimate import Phase

        seconds = time.monotonic() - self._began
        return Phase(self._title, self._done, self._total, self._before, seconds)

    def _tick(self) -> None:
        """Say from time to time what goes on, where nothing else was said."""
        while not self._over.wait(max(0.05, self._spoke + QUIET_SECONDS - time.monotonic())):
            if self._title and time.monotonic() - self._spoke >= QUIET_SECONDS:
                try:
                    self._print(self._what_goes_on())
                except OSError:
                    return  # nobody listens any more

    def _what_goes_on(self) -> str:
        found = self._look()
        said = f"  {self._title} {self._done}/{self._total}"
        if found is None:
            return said
        later = time.monotonic() - self._looked
        flying = "; ".join(map(status_block.describe_job, found.works[: status_block.MAX_JOBS]))
        left = status_block.remaining_seconds(found.phase_seconds_left, later)
        parts = [
            flying and f"in flight: {flying}",
            status_block.describe_speed(found),
            "" if left is None else f"about {format_duration(left)} left",
            status_block.describe_study_remaining(found, later),
            status_block.summarize_methods(found),
        ]
        return " | ".join([said, *(part for part in parts if part)])
