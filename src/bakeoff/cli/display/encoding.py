"""Output in any encoding: a character that the stream lacks is replaced or escaped.

A redirected stream on Windows has a code page, and ``PYTHONIOENCODING`` or the locale may choose
ASCII. Python would raise ``UnicodeEncodeError`` there.
"""

from __future__ import annotations

import codecs
import io
from typing import Any

SUBSTITUTE = "bakeoff-substitute"
"""Name of the error handler for ``encode`` and streams."""
_SUBSTITUTES = {
    "\N{BOX DRAWINGS LIGHT VERTICAL}": "|",
    "\N{BOX DRAWINGS LIGHT HORIZONTAL}": "-",
    "\N{RETURN SYMBOL}": "\\n",
    "\N{RIGHTWARDS ARROW TO BAR}": "\\t",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{MINUS SIGN}": "-",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{RIGHTWARDS ARROW}": "->",
    "\N{LEFTWARDS ARROW}": "<-",
    "\N{GREATER-THAN OR EQUAL TO}": ">=",
    "\N{LESS-THAN OR EQUAL TO}": "<=",
    "\N{PLUS-MINUS SIGN}": "+-",
    "\N{CHECK MARK}": "ok",
    "\N{DAGGER}": "+",
    "\N{BULLET}": "*",
    "\N{LEFT SINGLE QUOTATION MARK}": "'",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"',
    "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
    "\N{REPLACEMENT CHARACTER}": "?",
}
"""Signs that bakeoff prints itself, in ASCII; any other character becomes an escape."""


def _substitute(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    ascii_only = (
        _SUBSTITUTES.get(c) or c.encode("ascii", "backslashreplace").decode("ascii") for c in lost
    )
    return "".join(ascii_only), error.end


codecs.register_error(SUBSTITUTE, _substitute)


def encoding_of(stream: Any) -> str:
    """Return a stream's encoding; UTF-8 if it has none, such as a stream of text in memory."""
    return getattr(stream, "encoding", None) or "utf-8"


def can_encode(text: str, encoding: str) -> bool:
    """Return whether an encoding has every character of a text."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def replace_missing(text: str, encoding: str) -> str:
    """Return the text with a substitute or an escape for each character that an encoding lacks."""
    return text.encode(encoding, SUBSTITUTE).decode(encoding)


def make_total(stream: Any) -> None:
    """Make a stream replace the characters that its encoding lacks; None is left alone."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=SUBSTITUTE)
