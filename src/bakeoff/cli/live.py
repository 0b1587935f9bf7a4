"""Progress for people: a bar with ETA in a terminal, plain lines when piped."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bakeoff.cli.output import plain
from bakeoff.outward import redact


class Live:
    """Draws what a study says while it runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description:<12}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            # trials differ a lot between methods: a long window keeps the estimate calm
            TimeRemainingColumn(),
            TextColumn("{task.fields[what]}", markup=False),
            console=console,
            speed_estimate_period=600,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._title, self._total, self._done = "", 0, 0
        self._started = 0.0

    def __enter__(self) -> Self:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop drawing, so that an error prints below the bars."""
        self._bars.stop()

    def phase(self, title: str, total: int, done: int) -> None:
        """Begin a bar."""
        self._title, self._total, self._done = title, total, done
        self._started = time.monotonic()
        self._task = self._bars.add_task(title, total=total, completed=done, what="")
        if not self._console.is_terminal:
            there = f", {done} done before" if done else ""
            self._console.print(plain(f"{title}: {total}{there}"))

    def advance(self, what: str) -> None:
        """Move the bar by one."""
        self._done += 1
        if self._task is not None:
            self._bars.update(self._task, advance=1, what=redact(what))
        if not self._console.is_terminal:
            seconds = time.monotonic() - self._started
            self._console.print(
                plain(f"  {self._title} {self._done}/{self._total} {what} ({seconds:.0f} s)")
            )

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(plain(text), soft_wrap=True)
