"""Tokenised rows for ``bakeoff plan --show``: supervised tokens are on separate lines.

So they can be told from the context without colour, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from bakeoff.cli.display.output import escape_text, out

CONTEXT_LABEL, SUPERVISED_LABEL = "  context    ", "  supervised "
TOKEN_BORDER = "\N{BOX DRAWINGS LIGHT VERTICAL}"
_MARKS = {"\n": "\N{RETURN SYMBOL}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}


def show_rows(rows: list[dict[str, Any]], added: str | None = None) -> None:
    """Print each row as a heading and its tokens, with a border between two tokens.

    ``added`` is a sentence on the special tokens that the tokenizer adds.
    """
    if added is not None:
        out.print()
        out.print(escape_text(added), soft_wrap=True)
    for row in rows:
        supervised = f"{row['supervised']} supervised" if row["label"] is None else "one label"
        out.print()
        out.print(
            f"{escape_text(row['where'])}: {row['tokens']} tokens, {supervised}", style="bold"
        )
        for is_supervised, run in groupby(row["pieces"], key=lambda p: p["supervised"]):
            head, style = (CONTEXT_LABEL, "dim")
            if is_supervised:
                head, style = (SUPERVISED_LABEL, "bold green")
            for line in _lines([_text(p) for p in run], out.width - len(head) - 1):
                out.print(f"{head}{escape_text(line)}", style=style, soft_wrap=True)
        if row["label"] is not None:
            out.print(
                f"{SUPERVISED_LABEL}{escape_text(row['label'])}", style="bold green", soft_wrap=True
            )


def _lines(texts: list[str], width: int) -> Iterator[str]:
    """Yield lines of bordered tokens, wrapped between two tokens."""
    line = TOKEN_BORDER
    for text in texts:
        if len(line) > 1 and len(line) + len(text) + 1 > width:
            yield line
            line = TOKEN_BORDER
        line += text + TOKEN_BORDER
    yield line


def _text(piece: dict[str, Any]) -> str:
    """Return a token's text on one line: line ends as a sign, unprintable characters escaped."""
    shown = "".join(
        _MARKS.get(c, c if c.isprintable() else c.encode("unicode_escape").decode())
        for c in piece["text"]
    )
    return shown if piece["tokens"] == 1 else f"{shown}\N{MULTIPLICATION SIGN}{piece['tokens']}"
