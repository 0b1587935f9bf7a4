"""Tokenised rows on a terminal or in a pipe: what is given, what is learnt, token by token.

Part of ``bakeoff plan --show``. What is learnt stands on lines of its own, so that it is told
without colour.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from bakeoff.cli.display.output import escape_text, out

CONTEXT_LABEL, SUPERVISED_LABEL = "  given  ", "  learnt "
TOKEN_BORDER = "\N{BOX DRAWINGS LIGHT VERTICAL}"
_MARKS = {"\n": "\N{RETURN SYMBOL}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}


def show_rows(rows: list[dict[str, Any]]) -> None:
    """Print rows: one head line each, then its tokens, a border between any two."""
    for row in rows:
        learnt = f"{row['supervised']} learnt" if row["label"] is None else "one label learnt"
        out.print()
        out.print(f"{escape_text(row['where'])}: {row['tokens']} tokens, {learnt}", style="bold")
        for supervised, run in groupby(row["pieces"], key=lambda p: p["supervised"]):
            head, style = (SUPERVISED_LABEL, "bold green") if supervised else (CONTEXT_LABEL, "dim")
            for line in _lines([_text(p) for p in run], out.width - len(head) - 1):
                out.print(f"{head}{escape_text(line)}", style=style, soft_wrap=True)
        if row["label"] is not None:
            out.print(
                f"{SUPERVISED_LABEL}{escape_text(row['label'])}", style="bold green", soft_wrap=True
            )


def _lines(texts: list[str], width: int) -> Iterator[str]:
    """Yield the texts with borders, broken between two of them where a line would be too long."""
    line = TOKEN_BORDER
    for text in texts:
        if len(line) > 1 and len(line) + len(text) + 1 > width:
            yield line
            line = TOKEN_BORDER
        line += text + TOKEN_BORDER
    yield line


def _text(piece: dict[str, Any]) -> str:
    """Return a piece's text on one line: line ends as a sign, what does not print as its code."""
    shown = "".join(
        _MARKS.get(c, c if c.isprintable() else c.encode("unicode_escape").decode())
        for c in piece["text"]
    )
    return shown if piece["tokens"] == 1 else f"{shown}\N{MULTIPLICATION SIGN}{piece['tokens']}"
