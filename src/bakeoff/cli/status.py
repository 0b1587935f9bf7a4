"""``bakeoff status``: print a study's progress; also from another terminal, since it only reads."""

from __future__ import annotations

import dataclasses
import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Group
from rich.live import Live

from bakeoff.cli.display import status_block
from bakeoff.cli.display.output import JSON_OPTION, SafeConsole, find_study_folder, out, show_json
from bakeoff.cli.display.progress import can_redraw
from bakeoff.core.redact import sanitize

if TYPE_CHECKING:
    from bakeoff.study.monitoring.status import StudyStatus

REFRESH_SECONDS = 2.0
"""Interval between two readings with ``--watch``."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(command)


def command(
    study: Path | None = typer.Argument(None, help="Study folder; default: the newest in runs/."),
    watch: bool = typer.Option(
        False, "--watch", help="Refresh every 2 seconds until the study stops running."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show which process runs a study, the running trials, the time left and interim scores."""
    from bakeoff.study.monitoring.status import RUNNING, read_status

    folder = find_study_folder(study)
    status = read_status(folder)
    if watch and not as_json and can_redraw(out):
        with Live(console=out, auto_refresh=False, transient=True) as display:
            while status.state == RUNNING:
                display.update(render(status), refresh=True)
                time.sleep(REFRESH_SECONDS)
                status = read_status(folder)
        out.print(render(status))
        return
    before = None
    while True:
        text = None if as_json else _static_text(status)
        if as_json:
            show_json(status_to_json(status))
        elif text != before:
            out.print(render(status))
        before = text
        if not watch or status.state != RUNNING:
            return
        time.sleep(REFRESH_SECONDS)
        status = read_status(folder)


def status_to_json(status: StudyStatus) -> dict[str, Any]:
    """Return the status as JSON values."""
    return dataclasses.asdict(status)


def render(status: StudyStatus) -> Group:
    """Return what is printed: a headline, the last event and the status block."""
    lines = [_headline(status)]
    if status.last is not None:
        detail = (
            status.last.get("text") or status.last.get("what") or status.last.get("title") or ""
        )
        when, event = str(status.last.get("time", "")), status.last.get("event", "")
        lines.append(sanitize(f"last event: {when} {event} {detail}"))
    return Group(
        *(_folded_line(line) for line in lines), status_block.render_status(status, out.width)
    )


def _headline(status: StudyStatus) -> str:
    text = f"{status.folder}: {status.state}"
    if status.holder is not None:
        holder = status.holder
        text += f", process {holder['pid']} on {holder['host']} since {holder['since']}"
    return f"{text}; {status.done} of {status.planned} planned trials, {status.costs} costs"


def _folded_line(text: str) -> Any:
    from rich.text import Text

    return Text(sanitize(text), overflow="fold")


def _static_text(status: StudyStatus) -> str:
    """Return the status as text without its times; it is the same while nothing changes."""
    frozen = dataclasses.replace(
        status,
        phase=None if status.phase is None else dataclasses.replace(status.phase, seconds=0.0),
        works=tuple(dataclasses.replace(w, seconds=0.0) for w in status.works),
        phase_seconds_left=None,
        study_seconds_left=None,
    )
    console = SafeConsole(file=io.StringIO(), highlight=False, emoji=False, width=out.width)
    with console.capture() as captured:
        console.print(render(frozen))
    return captured.get()
