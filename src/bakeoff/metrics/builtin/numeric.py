r"""1 if the prediction's number equals the reference's, else 0: GSM8K, MetaMathQA and the like.

Which number is read:

1. After the last ``####``, ``answer is`` (``The answer is: 7``, ``the final answer is 7``; any
   case) or ``\boxed{``, the first number in the rest of that line (of that box); if there is none,
   no number. Of a calculation (``10 - 4 = 6``) it is the result.
2. Without one of these, the number after ``Answer:`` if its line has no other number outside
   parentheses (``Answer: 42 (see step 3)``).
3. Without any of these markers, the last number of the text; with ``marker = true`` none.

How it is read: as a whole (``metrics._numbers``), with the decimal mark of ``decimal``. A run that
is not one number (``1.234,50``, ``10:30``, ``3-4``) has no value: as a reference it is refused, as
a prediction it is wrong. ``$ € £ ¥`` and ``%`` are ignored (``50%`` is 50, as in GSM8K's
references). Fractions are ``3/4``, ``\frac{3}{4}``, ``1 1/2`` and Unicode's own (``½``).

Whole numbers are equal exactly, others as double-precision floats (so 20/35 is 0.5714285714285714),
or within ``tolerance`` of each other. HF's benchmark (``method_comparison/MetaMathQA/utils.py``)
requires a marker: ``marker = true``; it also counts equal texts that are not numbers, which this
does not.
"""

from __future__ import annotations

import math
import re

from bakeoff.core.record import MetricInfo
from bakeoff.metrics._numbers import MARKS, Run, find_runs, spell_out
from bakeoff.metrics._text import UnusableReference

INFO = MetricInfo("numeric", better="higher", unit="fraction", low=0.0, high=1.0)
TASKS = ("sft",)
LATER_OPTIONS = ("decimal",)

_MARKER = re.compile(r"####|\banswer\s+is\b\s*:?|\\f?boxed\s*\{", re.IGNORECASE)
_LABEL = re.compile(r"\banswer\s*[:=]", re.IGNORECASE)
_PARENTHESES = re.compile(r"\([^()]*\)")
_CALCULATION = re.compile(r"(?:\\[dt]?frac|\\times|\\cdot|\\div|[\d\s.,'_+\-*/×÷·^(){}$€£¥₹%=])*")


def check(*, tolerance: float = 0.0, marker: bool = False, decimal: str = "point") -> None:
    """Check the tolerance and the decimal mark.

    Raises:
        ValueError: the tolerance is negative or not finite, or there is no such decimal mark.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError("`tolerance` is a number from 0 on")
    if decimal not in MARKS:
        raise ValueError('`decimal` is "point" (1,234.5) or "comma" (1.234,5)')


def read_number(text: str, marker: bool = False, decimal: str = "point") -> int | float | None:
    """Return the number in a text, None if there is none."""
    run = _find_number(text, marker, decimal)
    return None if run is None else run.value


def _find_number(text: str, marker: bool, decimal: str) -> Run | None:
    """Return the run that is the answer, with or without a value; None if there is none."""
    text = spell_out(text, decimal)
    marks = list(_MARKER.finditer(text))
    if marks:
        return _first_number(_rest_of_line(text, marks[-1]), decimal)
    for label in reversed(list(_LABEL.finditer(text))):
        rest = _PARENTHESES.sub("", _rest_of_line(text, label))
        runs = list(find_runs(rest, decimal))
        if len(runs) == 1:
            return runs[0]
    if marker:
        return None
    return next(iter(reversed(list(find_runs(text, decimal)))), None)


def _rest_of_line(text: str, mark: re.Match[str]) -> str:
    """Return what stands after a marker in its line, or in the next one with text; or in a box."""
    rest = text[mark.end() :].lstrip().split("\n", 1)[0]
    if not mark[0].endswith("{"):
        return rest
    depth = 1
    for i, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:i]
    return rest


def _first_number(line: str, decimal: str) -> Run | None:
    """Return the first number of a line, or the result of the calculation that it begins."""
    runs = list(find_runs(line, decimal))
    if not runs:
        return None
    calculation = _CALCULATION.match(line, runs[0].start)
    stop = calculation.end() if calculation else 0
    equals = line.rfind("=", runs[0].start, stop)
    results = [run for run in runs if equals < run.start < stop]
    return results[0] if equals >= 0 and results else runs[0]


def score(
    prediction: str,
    reference: str,
    *,
    tolerance: float = 0.0,
    marker: bool = False,
    decimal: str = "point",
) -> float:
    """Return 1.0 if both have a number and they are equal.

    Raises:
        UnusableReference: the reference has no number, or one that cannot be read as a whole.
    """
    expected = _find_number(reference, marker, decimal)
    if expected is None:
        raise UnusableReference("the reference has no number to compare with")
    if expected.value is None:
        raise _unreadable(expected.written, decimal)
    predicted = read_number(prediction, marker, decimal)
    return float(predicted is not None and _are_equal(predicted, expected.value, tolerance))


def _are_equal(a: int | float, b: int | float, tolerance: float) -> bool:
    """Compare two whole numbers exactly, others as floats."""
    if isinstance(a, float) or isinstance(b, float):
        a, b = float(a), float(b)
    return abs(a - b) <= tolerance


def _unreadable(written: str, decimal: str) -> UnusableReference:
    """Return the error of a reference that is not a number, with the option that reads it."""
    (other,) = (name for name in MARKS if name != decimal)
    options = {}
    if all(run.value is not None for run in find_runs(spell_out(written, other), other)):
        options["decimal"] = other
    return UnusableReference(
        f"the reference's '{written}' is not one number with a decimal {decimal}, and a part of it "
        "would be another number",
        options,
    )
