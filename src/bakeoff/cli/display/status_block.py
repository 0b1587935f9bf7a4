"""A study's standing in a terminal: the same block under ``run`` and in ``status``.

Made of a ``Glance``; says nothing where nothing is known. Readable at 60 columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bakeoff.core.format import format_cell, format_duration
from bakeoff.core.redact import sanitize

if TYPE_CHECKING:
    from bakeoff.study.monitoring.progress_estimate import Flight, Phase
    from bakeoff.study.monitoring.status import Glance, Standing

MAX_JOBS = 4
"""Groups in flight that have a line of their own."""
WIDE = 90
"""Columns from which speeds stand beside the rest."""
MIN_ROWS = 3


def render_status(
    found: Glance, width: int, later: float = 0.0, height: int | None = None
) -> Group:
    """Return what goes on and who leads, ``later`` seconds after it was read.

    Of more methods than fit in ``height`` lines the control and the best are shown.
    """
    parts: list[RenderableType] = []
    if found.phase is not None:
        parts.append(
            render_phase(
                found.phase, width, remaining_seconds(found.phase_seconds_left, later), later
            )
        )
    parts += render_jobs(found.works, later)
    about = describe_speed(found)
    if about:
        parts.append(_text_line(about))
    rest = describe_study_remaining(found, later)
    if rest:
        parts.append(_text_line(rest))
    if found.planned:
        room = None if height is None else max(MIN_ROWS, height - len(parts) - 3)
        parts += render_methods(found, width, room)
    return Group(*parts)


def remaining_seconds(seconds: float | None, later: float) -> float | None:
    """Return what is still left ``later`` seconds after that was estimated."""
    return None if seconds is None else max(0.0, seconds - later)


def render_phase(
    phase: Phase, width: int, seconds_left: float | None, later: float = 0.0
) -> RenderableType:
    """Return the phase with its bar."""
    said = f"{phase.done}/{phase.total}  {format_duration(phase.seconds + later)}"
    if seconds_left is not None and phase.done < phase.total:
        said += f", about {format_duration(seconds_left)} left"
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, overflow="ellipsis", max_width=max(8, width - len(said) - 16))
    grid.add_column()
    grid.add_column(no_wrap=True)
    bar = ProgressBar(total=max(1, phase.total), completed=phase.done, width=max(10, width // 5))
    if width < len(said) + 30:
        bar = ProgressBar(total=max(1, phase.total), completed=phase.done, width=8)
    grid.add_row(Text(sanitize(phase.title), style="bold"), bar, Text(said))
    return grid


def render_jobs(found: Sequence[Flight], later: float = 0.0) -> list[RenderableType]:
    """Return a line for each group in flight."""
    lines: list[RenderableType] = [
        _text_line(f"  {describe_job(w)} ({format_duration(w.seconds + later)})")
        for w in found[:MAX_JOBS]
    ]
    if len(found) > MAX_JOBS:
        lines.append(_text_line(f"  and {len(found) - MAX_JOBS} more groups"))
    return lines


def describe_job(work: Flight) -> str:
    """Say what is in flight."""
    if work.stop is None:
        return f"{work.title}, alone" if work.what == "cost probe" else work.title
    lanes = f"{work.lanes} lanes" if work.lanes > 1 else "1 lane"
    return f"{work.title}, {lanes}, steps {work.start or 0} to {work.stop}"


def describe_speed(found: Glance) -> str:
    """Say how fast trials are trained, where some have been."""
    if found.tokens_per_second is None:
        return ""
    said = f"{found.tokens_per_second:,.0f} tokens/s so far"
    return f"{said}, each of {found.workers} workers" if found.workers > 1 else said


def describe_study_remaining(found: Glance, later: float = 0.0) -> str:
    """Say what is left of the whole study, where that is known."""
    seconds = remaining_seconds(found.study_seconds_left, later)
    return "" if seconds is None else f"the study: about {format_duration(seconds)} left"


def render_methods(found: Glance, width: int, most: int | None = None) -> list[RenderableType]:
    """Return the table of the methods, and a line that says how many are not in it."""
    rows, hidden = _select_methods(found, most)
    metric = found.metric or {}
    points = metric.get("unit") == "fraction"
    name = sanitize(str(metric.get("name", "score"))) + (" %" if points else "")
    by_metric = found.select_on == "metric"
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("so far", no_wrap=True, overflow="ellipsis", ratio=None)
    table.add_column("trials", justify="right", no_wrap=True)
    table.add_column("validation" if by_metric else "val. loss", justify="right", no_wrap=True)
    table.add_column("at step", justify="right", no_wrap=True)
    tested = any(m.test is not None for m in found.methods)
    if tested:
        table.add_column(f"test {name} (seeds)", justify="right", overflow="fold")
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
        if width >= WIDE:
            cells.append(Text(format_cell(row.tokens_per_second, ",.0f")))
        table.add_row(*cells, style="bold" if row.control else None)
    failed = sum(m.failed for m in found.methods)
    notes = [f"{hidden} more methods"] if hidden else []
    notes += [f"{failed} trials failed or diverged"] if failed else []
    return [table, *([_text_line("; ".join(notes))] if notes else [])]


def method_title(row: Standing) -> str:
    """Return a method's title, the control marked."""
    return sanitize(row.title) + (" (control)" if row.control else "")


def format_metric(found: float | None, points: bool) -> str:
    """Write a value of the metric."""
    return format_cell(found, ".1f", 100.0) if points else format_cell(found, ".4g")


def summarize_methods(found: Glance) -> str:
    """Say in a few words where the methods stand."""
    metric = found.metric or {}
    points, by_metric = metric.get("unit") == "fraction", found.select_on == "metric"
    tested = [m for m in found.methods if m.test is not None]
    if tested:
        return ", ".join(
            f"{method_title(m)} {format_metric(m.test, points)} ({m.n_seeds})" for m in tested
        )
    seen = [(method_title(m), m.validation) for m in found.methods if m.validation is not None]
    if by_metric:
        return ", ".join(f"{name} {format_metric(best, points)}" for name, best in seen)
    return ", ".join(f"{name} {format_cell(best, '.4f')}" for name, best in seen)


def _select_methods(found: Glance, most: int | None) -> tuple[list[Standing], int]:
    """Return the methods that fit: in the study's order, the best where not all do."""
    methods = list(found.methods)
    if most is None or len(methods) <= most:
        return methods, 0
    down = found.select_on != "metric" or (found.metric or {}).get("better") == "lower"
    sign = 1.0 if down else -1.0

    def rank(row: Standing) -> tuple[bool, bool, float]:
        value = row.validation
        return (not row.control, value is None, 0.0 if value is None else sign * value)

    kept = {m.method for m in sorted(methods, key=rank)[:most]}
    return [m for m in methods if m.method in kept], len(methods) - len(kept)


def _text_line(text: str) -> Text:
    return Text(sanitize(text), no_wrap=True, overflow="ellipsis")
