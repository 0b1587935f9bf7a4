"""``bakeoff view``: serve the report's sections, live from the database, to a local browser."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from bakeoff.cli.display.output import RUNS, err, is_terminal


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("view")(command)


def command(
    folders: list[Path] | None = typer.Argument(
        None, help="Study folders, or folders of studies; default: runs/."
    ),
    port: int | None = typer.Option(
        None, min=1, max=65535, help="Port; default: 8757, or a free one if that is taken."
    ),
    host: str = typer.Option(
        "127.0.0.1", help="Address to listen on; other than loopback it needs --allow-remote."
    ),
    allow_remote: bool = typer.Option(
        False,
        "--allow-remote",
        help="Accept other machines, without encryption; they need the token.",
    ),
    browser: bool | None = typer.Option(
        None, "--browser/--no-browser", help="Open a browser; default: if this is a terminal."
    ),
) -> None:
    """Show studies in a browser, live while they run: report, test items, side-by-side view."""
    from bakeoff.report.live import server

    opens = is_terminal(sys.stdout) if browser is None else browser
    options = server.ServerOptions(host, port, allow_remote, opens)
    opened = server.bind_server([_folder(f) for f in folders or [RUNS]], options)
    # not through the safe console, which would redact the token
    typer.echo(opened.url)
    err.print("Press Ctrl-C to stop. Anyone with this address can see your data.", style="dim")
    server.serve(opened, options)


def _folder(given: Path) -> Path:
    """Return the folder as given, or the study of that name under ``runs``."""
    return RUNS / given if not given.exists() and (RUNS / given).is_dir() else given
