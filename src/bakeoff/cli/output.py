"""What every verb prints with: tables and JSON on stdout, words and errors on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bakeoff.errors import BakeoffError, UsageError

RUNS = Path("runs")
JSON_OPTION = typer.Option(False, "--json", help="Print JSON on stdout instead of a table.")

# piped output is read by programs and pagers: never folded to 80 columns
out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, highlight=False)


def show_error(error: BakeoffError) -> None:
    """Print an error: its code, the cause, one line that says what to do."""
    err.print(f"[bold red]error[/] [bold]{escape(f'[{error.code}]')}[/] {escape(error.cause)}")
    err.print(f"[bold]Try:[/] {escape(error.try_)}")


def show_json(value: Any) -> None:
    """Print a JSON value, as it is, without wrapping or colour."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a table: the first column, the last and ``<`` ones to the left, the rest right."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(columns):
        left = i in (0, len(columns) - 1) or name.startswith("<")
        table.add_column(name.removeprefix("<"), justify="left" if left else "right")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    out.print(table)


def study_folder(given: Path | None) -> Path:
    """Return the study folder meant: the one given, or the newest under ``runs``.

    Raises:
        UsageError: ``no-study``.
    """
    if given is not None:
        if (given / "study.db").is_file() or not (RUNS / given / "study.db").is_file():
            return given
        return RUNS / given
    found = sorted(RUNS.glob("*/study.db"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise UsageError(
            "no-study", f"There is no study under {RUNS}/.", "`bakeoff demo`, or `bakeoff run`."
        )
    return found[-1].parent


def number(value: float | None, form: str = "g", scale: float = 1.0) -> str:
    """Return a number for a table; absence is a dash."""
    return "-" if value is None else format(value * scale, form)
