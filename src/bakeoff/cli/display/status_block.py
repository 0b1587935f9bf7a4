"""A study's status in a terminal: the same block under ``bakeoff run`` and ``bakeoff status``.

Drawn from a ``StudyStatus``; unknown values are left out. Readable at 60 columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bakeoff.core.format import format_cell, format_duration, format_lane_costs
from bakeoff.core.redact import sanitize

if TYPE_CHECKING:
    from bakeoff.study.monitoring.progress_estimate import PhaseProgress, RunningJob
    from bakeoff.study.monitoring.status import MethodStatus, StudyStatus

MAX_JOBS = 4
"""Running groups that get one line each."""
WIDE = 90
"""Terminal columns from which the table shows speeds, too."""
MIN_ROWS = 3


def render_status(
    status: StudyStatus, width: int, later: float = 0.0, height: int | None = None
) -> Group:
    """Render phase, running groups and scores, ``later`` seconds after the status was read.

    If the methods do not fit in ``height`` lines, the control and the best ones are shown.
    """
    parts: list[RenderableType] = []
    if status.phase is not None:
        parts.append(
            render_phase(
                status.phase, width, remaining_seconds(status.phase_seconds_left, later), later
            )
        )
    parts += render_jobs(status.works, later)
    speed = describe_speed(status)
    if speed:
        parts.append(_text_line(speed))
    lanes = format_lane_costs((m.title, m.lanes_timed, m.lanes_ratio) for m in status.methods)
    if lanes:
        parts.append(_text_line(lanes))
    rounds = describe_rounds(status)
    if rounds:
        parts.append(_text_line(rounds))
    remaining = describe_study_remaining(status, later)
    if remaining:
        parts.append(_text_line(remaining))
    if status.planned:
        room = None if height is None else max(MIN_ROWS, height - len(parts) - 3)
        parts += render_methods(status, width, room)
    return Group(*parts)


def remaining_seconds(seconds: float | None, later: float) -> float | None:
    """Return the seconds left, ``later`` seconds after they were estimated."""
    return None if seconds is None else max(0.0, seconds - later)


def render_phase(
    phase: PhaseProgress, width: int, seconds_left: float | None, later: float = 0.0
) -> RenderableType:
    """Render the phase with its progress bar."""
    text = f"{phase.done}/{phase.total}  {format_duration(phase.seconds + later)}"
    if seconds_left is not None and phase.done < phase.total:
        text += f", about {format_duration(seconds_left)} left"
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, overflow="ellipsis", max_width=max(8, width - len(text) - 16))
    grid.add_column()
    grid.add_column(no_wrap=True)
    bar = ProgressBar(total=max(1, phase.total), completed=phase.done, width=max(10, width // 5))
    if width < len(text) + 30:
        bar = ProgressBar(total=max(1, phase.total), completed=phase.done, width=8)
    grid.add_row(Text(sanitize(phase.title), style="bold"), bar, Text(text))
    return grid


def render_jobs(jobs: Sequence[RunningJob], later: float = 0.0) -> list[RenderableType]:
    """Render one line for each running group."""
    lines: list[RenderableType] = [
        _text_line(f"  {describe_job(w)} ({format_duration(w.seconds + later)})")
        for w in jobs[:MAX_JOBS]
    ]
    if len(jobs) > MAX_JOBS:
        lines.append(_text_line(f"  and {len(jobs) - MAX_JOBS} more groups"))
    return lines


def describe_job(job: RunningJob) -> str:
    """Describe a running group: method, lanes, steps."""
    if job.stop is None:
        return f"{job.title}, cost probe" if job.what == "cost probe" else job.title
    lanes = f"{job.lanes} lanes" if job.lanes > 1 else "1 lane"
    return f"{job.title}, {lanes}, steps {job.start or 0} to {job.stop}"


def describe_speed(status: StudyStatus) -> str:
    """Describe the training speed; empty before the first trial."""
    if status.tokens_per_second is None:
        return ""
    text = f"{status.tokens_per_second:,.0f} tokens/s so far"
    return f"{text}, each of {status.workers} workers" if status.workers > 1 else text


def describe_rounds(status: StudyStatus) -> str:
    """Describe the rounds: the looks taken, and the contenders that are open; else empty."""
    rounds = status.rounds
    if rounds is None:
        return ""
    planned = ", ".join(map(str, rounds.planned))
    replicates = f"round {rounds.looks + 1} of at most {len(rounds.planned)}"
    if rounds.ended:
        replicates = f"{rounds.looks} of {len(rounds.planned)} looks"
    titles = {m.method: m.title for m in status.methods}
    still_open = ", ".join(titles.get(name, name) for name in rounds.open)
    text = f"{replicates} (looks at {planned} replicates)"
    return f"{text}; open: {still_open}" if still_open and not rounds.ended else text


def describe_study_remaining(status: StudyStatus, later: float = 0.0) -> str:
    """Describe the time left of the whole study; empty if it is unknown."""
    seconds = remaining_seconds(status.study_seconds_left, later)
    return "" if seconds is None else f"whole study: about {format_duration(seconds)} left"


def render_methods(
    status: StudyStatus, width: int, limit: int | None = None
) -> list[RenderableType]:
    """Render the table of methods, and a line that counts the hidden ones."""
    rows, hidden = _select_methods(status, limit)
    metric = status.metric or {}
    points = metric.get("unit") == "fraction"
    name = sanitize(str(metric.get("name", "score"))) + (" %" if points else "")
    by_metric = status.select_on == "metric"
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("so far", no_wrap=True, overflow="ellipsis", ratio=None)
    table.add_column("trials", justify="right", no_wrap=True)
    table.add_column("validation" if by_metric else "val. loss", justify="right", no_wrap=True)
    table.add_column("at step", justify="right", no_wrap=True)
    tested = any(m.test is not None for m in status.methods)
    if tested:
        table.add_column(f"test {name} (seeds)", justify="right", overflow="fold")
    settled = any(m.verdict is not None for m in status.methods)
    if settled:
        table.add_column("verdict", no_wrap=True)
    if width >= WIDE:
        table.add_column("tokens/s", justify="right", no_wrap=True)
    for row in rows:
        cells = [
            Text(method_title(row)),
            Text("cannot run" if row.incompatible is not None else f"{row.done}/{row.planned}"),
            Text(
                format_metric(row.validation, points)
                if by_metric
                else format_cell(row.validation, ".4f")
            ),
            Text(format_cell(row.step, ",.0f")),
        ]
        if tested:
            seeds = f" ({row.n_seeds})" if row.n_seeds else ""
            cells.append(Text(format_metric(row.test, points) + seeds))
        if settled:
            cells.append(Text("" if row.control else row.verdict or "open"))
        if width >= WIDE:
            cells.append(Text(format_cell(row.tokens_per_second, ",.0f")))
        table.add_row(*cells, style="bold" if row.control else None)
    failed = sum(m.failed for m in status.methods)
    notes = [f"{hidden} more methods"] if hidden else []
    notes += [f"{failed} trials failed or diverged"] if failed else []
    return [table, *([_text_line("; ".join(notes))] if notes else [])]


def method_title(row: MethodStatus) -> str:
    """Return a method's title, with the control marked."""
    return sanitize(row.title) + (" (control)" if row.control else "")


def format_metric(value: float | None, points: bool) -> str:
    """Format a value of the metric."""
    return format_cell(value, ".1f", 100.0) if points else format_cell(value, ".4g")


def summarize_methods(status: StudyStatus) -> str:
    """Summarise the methods' interim scores in one line."""
    metric = status.metric or {}
    points, by_metric = metric.get("unit") == "fraction", status.select_on == "metric"
    tested = [m for m in status.methods if m.test is not None]
    if tested:
        return ", ".join(
            f"{method_title(m)} {format_metric(m.test, points)} ({m.n_seeds})" for m in tested
        )
    validated = [
        (method_title(m), m.validation) for m in status.methods if m.validation is not None
    ]
    if by_metric:
        return ", ".join(f"{name} {format_metric(best, points)}" for name, best in validated)
    return ", ".join(f"{name} {format_cell(best, '.4f')}" for name, best in validated)


def _select_methods(status: StudyStatus, limit: int | None) -> tuple[list[MethodStatus], int]:
    """Return the methods to show, in the study's order, and the number of hidden ones."""
    methods = list(status.methods)
    if limit is None or len(methods) <= limit:
        return methods, 0
    down = status.select_on != "metric" or (status.metric or {}).get("better") == "lower"
    sign = 1.0 if down else -1.0

    def rank(row: MethodStatus) -> tuple[bool, bool, float]:
        value = row.validation
        return (not row.control, value is None, 0.0 if value is None else sign * value)

    shown = {m.method for m in sorted(methods, key=rank)[:limit]}
    return [m for m in methods if m.method in shown], len(methods) - len(shown)


def _text_line(text: str) -> Text:
    return Text(sanitize(text), no_wrap=True, overflow="ellipsis")
