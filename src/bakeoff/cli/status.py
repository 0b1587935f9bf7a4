"""``bakeoff status``: how far a study is, from another terminal too; it only reads."""

from __future__ import annotations

import dataclasses
import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Group
from rich.live import Live as Redrawn

from bakeoff.cli.display import status_block
from bakeoff.cli.display.output import JSON_OPTION, SafeConsole, find_study_folder, out, show_json
from bakeoff.cli.display.progress import can_redraw
from bakeoff.core.redact import sanitize

if TYPE_CHECKING:
    from bakeoff.study.monitoring.status import Glance

REFRESH_SECONDS = 2.0
"""Seconds between two looks with ``--watch``."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("status")(command)


def command(
    study: Path | None = typer.Argument(None, help="Study folder; default: the newest in runs/."),
    watch: bool = typer.Option(
        False, "--watch", help="Draw it again every 2 seconds, until nobody runs the study."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show who runs a study, what is in flight, what is left, and who leads so far."""
    from bakeoff.study.monitoring.status import RUNNING, glance

    folder = find_study_folder(study)
    found = glance(folder)
    if watch and not as_json and can_redraw(out):
        with Redrawn(console=out, auto_refresh=False, transient=True) as drawn:
            while found.state == RUNNING:
                drawn.update(render(found), refresh=True)
                time.sleep(REFRESH_SECONDS)
                found = glance(folder)
        out.print(render(found))
        return
    before = None
    while True:
        text = None if as_json else _static_text(found)
        if as_json:
            show_json(status_to_json(found))
        elif text != before:
            out.print(render(found))
        before = text
        if not watch or found.state != RUNNING:
            return
        time.sleep(REFRESH_SECONDS)
        found = glance(folder)


def status_to_json(found: Glance) -> dict[str, Any]:
    """Return a glance as a JSON value."""
    return dataclasses.asdict(found)


def render(found: Glance) -> Group:
    """Return what is printed of a glance."""
    lines = [_headline(found)]
    if found.last is not None:
        said = found.last.get("text") or found.last.get("what") or found.last.get("title") or ""
        when, event = str(found.last.get("time", "")), found.last.get("event", "")
        lines.append(sanitize(f"last heard: {when} {event} {said}"))
    return Group(*(_flat(line) for line in lines), status_block.render_status(found, out.width))


def _headline(found: Glance) -> str:
    text = f"{found.folder}: {found.state}"
    if found.holder is not None:
        who = found.holder
        text += f", process {who['pid']} on {who['host']} since {who['since']}"
    return f"{text}; {found.done} of {found.planned} planned trials, {found.costs} costs"


def _flat(text: str) -> Any:
    from rich.text import Text

    return Text(sanitize(text), overflow="fold")


def _static_text(found: Glance) -> str:
    """Return a glance as text without its clocks, to tell whether anything has happened."""
    still = dataclasses.replace(
        found,
        phase=None if found.phase is None else dataclasses.replace(found.phase, seconds=0.0),
        works=tuple(dataclasses.replace(w, seconds=0.0) for w in found.works),
        phase_seconds_left=None,
        study_seconds_left=None,
    )
    sink = SafeConsole(file=io.StringIO(), highlight=False, emoji=False, width=out.width)
    with sink.capture() as held:
        sink.print(render(still))
    return held.get()
