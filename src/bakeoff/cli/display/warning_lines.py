"""Warnings in a terminal: the most important first, at most a screen of them."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence

from rich.console import Console

from bakeoff.cli.display.output import escape_text
from bakeoff.core.format import plural
from bakeoff.core.warning_codes import (
    LIBRARY,
    VERDICT,
    code_of,
    group_of,
    sort_warnings,
)

MAX_LINES = 20
"""Lines of warnings at a time."""
MAX_LINES_EACH = 4
"""Lines of one warning; the report and ``--verbose`` have the whole text."""
PREFIX = "warning: "


def show_warnings(
    console: Console,
    warnings: Sequence[str],
    where: str,
    *,
    shown: Collection[str] = (),
    verbose: bool = False,
) -> list[str]:
    """Print the warnings that were not ``shown`` yet; return those that were printed now.

    ``where`` says where the others are. With ``verbose`` all are printed, uncut.
    """
    waiting = [w for w in sort_warnings(warnings) if w not in shown]
    left = MAX_LINES
    printed: list[str] = []
    for warning in waiting:
        lines = _wrap(warning, console.width)
        if not verbose:
            lines = _cut(lines, warning, console.width)
            if code_of(warning) == LIBRARY or (printed and len(lines) > left):
                break  # nothing that follows is more important
        left -= len(lines)
        printed.append(warning)
        text = "\n".join(lines) if console.is_terminal else " ".join(map(str.strip, lines))
        marked = f"[yellow]{PREFIX.strip()}[/] {escape_text(text.removeprefix(PREFIX))}"
        console.print(marked, soft_wrap=True)
    earlier = [code_of(w) or "" for w in sort_warnings(shown) if group_of(w) == VERDICT]
    if waiting and (codes := [c for c in dict.fromkeys(earlier) if c]):
        console.print(escape_text(f"Printed at the start: {', '.join(codes)}."), soft_wrap=True)
    if rest := len(waiting) - len(printed):
        console.print(escape_text(f"{plural(rest, 'more warning')}: {where}"), soft_wrap=True)
    return printed


def _wrap(warning: str, width: int) -> list[str]:
    text = PREFIX + " ".join(warning.split())
    indent = " " * len(PREFIX)
    return textwrap.wrap(
        text,
        max(40, width),
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def _cut(lines: list[str], warning: str, width: int) -> list[str]:
    """Shorten a long warning in the middle: it keeps its first lines, and its code."""
    if len(lines) <= MAX_LINES_EACH:
        return lines
    code = code_of(warning)
    end = "…" if code is None else f"… [{code}]"
    last = lines[MAX_LINES_EACH - 1]
    room = max(40, width) - len(end)
    kept = last if len(last) <= room else last[:room].rsplit(" ", 1)[0]
    return [*lines[: MAX_LINES_EACH - 1], kept + end]
