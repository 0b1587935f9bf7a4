r"""Numbers in texts: each is read whole and with a stated decimal mark, or it is not a number.

A run is the longest piece of digits and of the marks that stand between digits. A date, a time, a
range, a version, a product, a power and a number with another country's marks are one run each and
have no value: a part of them is never read as if it were the number.

With the decimal mark ``.`` groups of three digits may be separated by commas, spaces (no-break and
thin ones too), apostrophes or underscores, and by commas as in India (``12,34,567``). With the mark
``,`` points take the place of commas. A number has one kind of separator.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

MARKS = {"point": ".", "comma": ","}
"""The decimal mark of each value of the option ``decimal``."""
_OTHER = {"point": "comma", "comma": "point"}

_CURRENCY = "[$€£¥₹]"
_ROOT = r"(?:\\sqrt\s*(?:\[\d+\])?\s*(?:\{[^{}]*\}|\d)?|√ ?\(?\d*)"
_GROUPED_BY_SPACE = r"\d{1,3}(?: \d{3}(?!\d))+"
_BETWEEN_DIGITS = (
    rf"[.,:'_](?=\d)|[eE][-+]?(?=\d)| ?/ ?(?=\d)|%?-(?:{_CURRENCY} ?)?(?=\d)"
    r"|[+*×÷·⋅xX](?=\d)|\*\*-?(?=\d)|\^\{?-?(?=\d)"
)
_BODY = (
    rf"(?:(?<![\w.)\]])[.,])?(?:{_GROUPED_BY_SPACE}|\d+)(?:(?:{_BETWEEN_DIGITS})\d+)*"
    rf"(?P<factor> ?(?:{_ROOT}|\\pi\b|π))?"
)
_SIGN = r"(?P<sign>(?<![^\W_])(?<![)^])(?<!\^\{)[-+])?"
_NO_INDEX = r"(?<![\d^_/])(?<!\^\{)(?<!_\{)(?<!\^-)(?<!\^\{-)"
_RUN = re.compile(
    rf"{_SIGN}(?:{_CURRENCY} ?)?{_NO_INDEX}(?:"
    r"\\[dt]?frac\s*\{\s*(?P<top>[^{}]*?)\s*\}\s*\{\s*(?P<bottom>[^{}]*?)\s*\}"
    r"|\\[dt]?frac\s*(?P<over>\d)\s*(?P<under>\d)"
    rf"|(?P<root>{_ROOT})"
    r"|(?P<mixed>\d+ \d+ ?/ ?\d+)(?![\d/])"
    rf"|(?P<body>{_BODY}))"
)
_TAIL = re.compile(r"(?<=\d )0\d")
"""The rest of a number that is grouped in another way (``1,000 000``): not a number of its own."""
_SCIENTIFIC = re.compile(
    r"(?<=\d) ?(?:×|x|X|\*|·|⋅|\\times|\\cdot) ?10 ?(?:\^|\*\*) ?\{? ?([-+]?\d+) ?\}?"
)
_POWER = re.compile(r"(?<=\d)([⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
_SAME = str.maketrans(
    {
        **dict.fromkeys("\u00a0\u2007\u2009\u202f", " "),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\uff0d", "-"),
        **dict.fromkeys("\u2019\u02bc\u066c", "'"),
        "\uff0b": "+",
        "\u2044": "/",
    }
)
"""Signs that are written in several ways."""


class Run(NamedTuple):
    """A number as it is written, its place in the text, and its value if it has one."""

    written: str
    start: int
    value: int | float | None


def spell_out(text: str, decimal: str = "point") -> str:
    """Return a text with one sign for each mark, and LaTeX's and Unicode's numbers in ASCII."""
    text = text.translate(_SAME).replace("\u066b", MARKS[decimal])
    text = text.replace("{,}", ",").replace(",\\!", ",").replace("\\,", " ").replace("\\ ", " ")
    text = text.replace("\\$", "$").replace("\\%", "%")
    text = "".join(
        f" {unicodedata.normalize('NFKC', c)} "
        if unicodedata.decomposition(c).startswith("<fraction>")
        else c
        for c in text
    ).replace("\u2044", "/")
    text = _POWER.sub(
        lambda m: "^" + unicodedata.normalize("NFKC", m[1]).replace("\u2212", "-"), text
    )
    return _SCIENTIFIC.sub(r"e\1", text)


def find_runs(text: str, decimal: str = "point") -> Iterator[Run]:
    """Yield the numbers of a text that was spelt out, from left to right."""
    for match in _RUN.finditer(text):
        yield Run(match[0], match.start(), _match_value(match, decimal))


def _match_value(match: re.Match[str], decimal: str) -> int | float | None:
    """Return the value of a run; None if it has none, is not finite, or divides by 0."""
    if match["root"] or match["factor"] or _TAIL.match(match.string, match.start()):
        return None
    if match["mixed"]:
        whole, fraction = (_value(part, decimal) for part in match["mixed"].split(" ", 1))
        value = None if whole is None or fraction is None else whole + fraction
    elif match["body"]:
        value = _value(match["body"], decimal)
    else:
        top, bottom = match["top"] or match["over"], match["bottom"] or match["under"]
        value = _value(f"{top}/{bottom}", decimal)
    return -value if value is not None and match["sign"] == "-" else value


def _value(text: str, decimal: str) -> int | float | None:
    """Return the value of a whole number, a decimal number or a fraction of two of them."""
    top, slash, bottom = (part.strip() for part in text.partition("/"))
    if not slash:
        return _decimal_value(top, decimal)
    above, below = _decimal_value(top, decimal), _decimal_value(bottom, decimal)
    return None if above is None or not below else above / below


def _decimal_value(text: str, decimal: str) -> int | float | None:
    """Return a whole number as an int, so that it is exact, and any other as a float."""
    if not _number_pattern(decimal).fullmatch(text):
        return None
    thousands = MARKS[_OTHER[decimal]]
    plain = re.sub("[ '_]", "", text).replace(thousands, "").replace(MARKS[decimal], ".")
    value = float(plain)
    if not math.isfinite(value):  # too many digits
        return None
    return int(plain) if plain.lstrip("-").isdecimal() else value


@functools.cache
def _number_pattern(decimal: str) -> re.Pattern[str]:
    """Return the pattern of a number with this decimal mark; ``0,123`` is no group of three."""
    mark, thousands = re.escape(MARKS[decimal]), re.escape(MARKS[_OTHER[decimal]])
    grouped = rf"(?!0)\d{{1,3}}(?P<separator>[{thousands} '_])\d{{3}}(?:(?P=separator)\d{{3}})*"
    indian = r"|(?!0)\d{1,2}(?:,\d{2})+,\d{3}" if decimal == "point" else ""
    whole = rf"(?:{grouped}{indian}|\d+)"
    return re.compile(rf"-?(?:{whole}(?:{mark}\d+)?|{mark}\d+)(?:[eE][-+]?\d+)?")
