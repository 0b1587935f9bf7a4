"""``bakeoff view``: the report's sections live from the database, in a browser on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from bakeoff.cli.display.output import RUNS, err


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("view")(command)


def command(
    folders: list[Path] | None = typer.Argument(
        None, help="Study folders, or folders of studies; default: runs/."
    ),
    port: int | None = typer.Option(
        None, min=1, max=65535, help="Default 8757, or a free one where that is taken."
    ),
    host: str = typer.Option("127.0.0.1", help="Another than loopback wants --allow-remote."),
    allow_remote: bool = typer.Option(
        False, "--allow-remote", help="Let other machines in, unencrypted; they need the token."
    ),
    browser: bool | None = typer.Option(
        None, "--browser/--no-browser", help="Open a browser; default: where this is a terminal."
    ),
) -> None:
    """Show studies in a browser, live while they run: sections, test items, two side by side."""
    from bakeoff.report.live import server

    opens = sys.stdout.isatty() if browser is None else browser
    wishes = server.Wishes(host, port, allow_remote, opens)
    opened = server.prepare([_folder(f) for f in folders or [RUNS]], wishes)
    # as it is: what every other line is printed through would take the token out
    typer.echo(opened.url)
    err.print("Ctrl-C ends it. Whoever has this address sees your data.", style="dim")
    server.serve(opened, wishes)


def _folder(given: Path) -> Path:
    """Return the folder meant: as it is, or the study of that name under ``runs``."""
    return RUNS / given if not given.exists() and (RUNS / given).is_dir() else given
