"""Output of every command: tables and JSON on stdout, messages and errors on stderr.

Everything is printed through ``SafeConsole``, so that untrusted names, rows and error texts cannot
move the cursor, set the terminal's title or show a secret, and every encoding can show them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table

from bakeoff.cli.display.encoding import can_encode, encoding_of, replace_missing
from bakeoff.core.errors import BakeoffError, UsageError
from bakeoff.core.redact import escape_control_chars, redact, redact_value, strip_control_chars

RUNS = Path("runs")
JSON_OPTION = typer.Option(False, "--json", help="Print JSON on stdout instead of a table.")
VERBOSE_OPTION = typer.Option(
    False, "--verbose", help="Print every warning in full, instead of the most important ones."
)


class SafeConsole(Console):
    """A console that shows other signs for control characters and those its encoding lacks."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as rich does; only rich's own control codes pass through."""
        for text, style, control in super().render(renderable, options):
            shown = text if control else replace_missing(strip_control_chars(text), self.encoding)
            yield Segment(shown, style, control)

    def on_broken_pipe(self) -> NoReturn:
        """Raise an error: rich would exit, and end a study whose output ``head`` has left."""
        raise BrokenPipeError(errno.EPIPE, "the reader of this output has left")


def is_terminal(stream: Any) -> bool:
    """Return whether a stream is a terminal; one that is closed, or None, is not."""
    return stream is not None and not stream.closed and bool(stream.isatty())


# programs and pagers read piped output: do not wrap it at 80 columns
out = SafeConsole(highlight=False, emoji=False, width=None if is_terminal(sys.stdout) else 160)
err = SafeConsole(stderr=True, highlight=False, emoji=False)


def escape_text(text: str) -> str:
    """Escape untrusted text for a line with rich markup, with secrets redacted."""
    return escape(redact(text))


def show_error(error: BakeoffError) -> None:
    """Print an error: its code, its cause, and a hint, whose commands are not broken into lines."""
    code = escape(f"[{error.code}]")
    with contextlib.suppress(OSError):  # the exit code must tell, even if stderr is gone
        err.print(f"[bold red]error[/] [bold]{code}[/] {escape_text(error.cause)}")
        err.print(f"[bold]Try:[/] {escape_text(error.try_)}", soft_wrap=True)


def show_internal_error() -> None:
    """Print the traceback of an internal error."""
    with contextlib.suppress(OSError):
        err.print(redact(traceback.format_exc()), markup=False, soft_wrap=True)
        err.print("This is a bug in bakeoff. Please report it with the lines above.")


def show_json(value: Any) -> None:
    """Print a JSON value; secrets are redacted, control characters escaped."""
    text = escape_control_chars(json.dumps(redact_value(value), indent=1, ensure_ascii=False))
    if not can_encode(text, encoding_of(sys.stdout)):  # the stream's own escapes are not JSON's
        text = escape_control_chars(json.dumps(redact_value(value), indent=1))
    typer.echo(text)


def show_document(text: str) -> None:
    """Print a text in a format of its own; say so if stdout's encoding changes it."""
    encoding = encoding_of(sys.stdout)
    if not can_encode(text, encoding):
        text = replace_missing(text, encoding)
        err.print(
            f"[yellow]warning:[/] stdout's encoding, {encoding}, lacks characters of this text: "
            "they are escaped. PYTHONIOENCODING=utf-8 prints them."
        )
    typer.echo(text, nl=not text.endswith("\n"))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a table. The first, the last and ``<`` columns are left-aligned, the rest right."""
    table = Table(title=escape_text(title) or None, title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(columns):
        left = i in (0, len(columns) - 1) or name.startswith("<")
        table.add_column(escape_text(name.removeprefix("<")), justify="left" if left else "right")
    for row in rows:
        table.add_row(*(escape_text(cell) for cell in row))
    out.print(table)


def find_study_folder(given: Path | None) -> Path:
    """Return the study folder: ``given``, ``runs/given``, or the newest study under ``runs``.

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
            "no-study",
            f"There is no study under {RUNS}/.",
            "`bakeoff demo`, or `bakeoff run STUDY.toml`.",
        )
    return found[-1].parent
