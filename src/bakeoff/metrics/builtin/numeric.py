r"""1 if the prediction's number equals the reference's, else 0: GSM8K, MetaMathQA and the like.

Which number is read:

1. After the last ``####`` or ``answer is`` (``The answer is: 7``, ``the final answer is 7``; any
   case), the first number in the rest of that line; if there is none, no number.
2. Without such a marker, the last number of the text; with ``marker = true`` none.

How it is read: a sign (``-``, ``+``, U+2212, en dash) if no letter or digit precedes it;
``$ € £ ¥`` and ``%`` are ignored (``50%`` is 50, as in GSM8K's references); thousands are separated
by commas, no-break or thin spaces in groups of three (``1,234``, LaTeX's ``1{,}234`` too); the
decimal mark is a point (``3,5`` is two numbers), an exponent may follow (``1.5e3``); fractions are
``3/4``, ``\frac{3}{4}``, ``1 1/2`` and Unicode's own (``½``), not with a denominator of 0. Powers
and indices (``x^2``, ``x_1``) are not numbers.

Numbers are equal as double-precision floats (so 20/35 is 0.5714285714285714), or within
``tolerance`` of each other. HF's benchmark (``method_comparison/MetaMathQA/utils.py``) requires a
marker: ``marker = true``; it also counts equal texts that are not numbers, which this does not.
"""

from __future__ import annotations

import math
import re
import unicodedata

from bakeoff.core.record import MetricInfo

INFO = MetricInfo("numeric", better="higher", unit="fraction", low=0.0, high=1.0)
TASKS = ("sft",)

_MARKER = re.compile(r"####|\banswer\s+is\b\s*:?", re.IGNORECASE)
_SIGN = r"(?P<sign>(?<![^\W_])(?<!\))[-+\u2212\u2013])?"
_WHOLE = r"\d{1,3}(?:[,\u00a0\u202f\u2009]\d{3})+(?!\d)|\d+"
_DECIMAL = rf"(?:(?:{_WHOLE})(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBER = re.compile(
    rf"{_SIGN}(?:[$€£¥][ ]?)?(?<![\^_\d])(?<!\^\{{)(?:"
    rf"\\[dt]?frac\{{\s*(?P<top>{_DECIMAL})\s*\}}\{{\s*(?P<bottom>{_DECIMAL})\s*\}}"
    rf"|(?P<mixed>\d+)[ \t]+(?P<over>\d+)[ ]?/[ ]?(?P<under>\d+)"
    rf"|(?P<number>{_DECIMAL})(?:[ ]?/[ ]?(?P<divisor>{_DECIMAL}))?)"
)


def check(*, tolerance: float = 0.0, marker: bool = False) -> None:
    """Check the tolerance.

    Raises:
        ValueError: it is negative or not finite.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError("`tolerance` is a number from 0 on")


def read_number(text: str, marker: bool = False) -> float | None:
    """Return the number in a text, None if there is none."""
    text = _spell_out(text)
    marks = list(_MARKER.finditer(text))
    if marks:
        rest = text[marks[-1].end() :].lstrip().split("\n", 1)[0]
        match = _NUMBER.search(rest)
    elif marker:
        return None
    else:
        match = next(reversed(list(_NUMBER.finditer(text))), None)
    return None if match is None else _match_value(match)


def _spell_out(text: str) -> str:
    """Replace LaTeX's thousands separators and Unicode's fractions by plain text."""
    text = text.replace("{,}", ",").replace(",\\!", ",")
    return "".join(
        f" {unicodedata.normalize('NFKC', c)} "
        if unicodedata.decomposition(c).startswith("<fraction>")
        else c
        for c in text
    ).replace("\u2044", "/")


def _match_value(match: re.Match[str]) -> float | None:
    """Return the value of a matched number, None if it is not finite or divides by 0."""
    top, bottom = match["top"] or match["number"], match["bottom"] or match["divisor"]
    whole = 0.0
    if match["mixed"] is not None:
        whole, top, bottom = _parse_digits(match["mixed"]), match["over"], match["under"]
    below = 1.0 if bottom is None else _parse_digits(bottom)
    if below == 0:
        return None
    value = whole + _parse_digits(top) / below
    if not math.isfinite(value):  # too many digits
        return None
    return -value if (match["sign"] or "+") in "-\u2212\u2013" else value


def _parse_digits(digits: str) -> float:
    return float(re.sub("[,\u00a0\u202f\u2009]", "", digits))


def score(
    prediction: str, reference: str, *, tolerance: float = 0.0, marker: bool = False
) -> float:
    """Return 1.0 if both have a number and they are equal.

    Raises:
        ValueError: the reference has none.
    """
    expected = read_number(reference, marker)
    if expected is None:
        raise ValueError("the reference has no number to compare with")
    predicted = read_number(prediction, marker)
    return float(predicted is not None and abs(predicted - expected) <= tolerance)
