"""1 if a pattern from the study file matches the prediction as configured, else 0.

``pattern`` is a regular expression of Python's ``re``, searched anywhere in the prediction:

- without a group, a match is sufficient (a format that predictions must have);
- with a group, the first group of the *last* match with a non-empty group must equal what the same
  pattern extracts from the reference, or the whole reference if it extracts nothing; white space at
  the ends is ignored.

Pattern and texts are brought to Unicode's composed form (NFC). ``(?i)`` at the start of the pattern
ignores case, ``(?s)`` lets ``.`` match line ends.
"""

from __future__ import annotations

import re
import unicodedata

from bakeoff.core.record import MetricInfo
from bakeoff.metrics._text import normalize

INFO = MetricInfo("regex", better="higher", unit="fraction", low=0.0, high=1.0)
TASKS = ("sft",)


def check(*, pattern: str) -> None:
    """Check the pattern.

    Raises:
        ValueError: it is not a regular expression, with the position of the error.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"`pattern` is not a regular expression: {error}") from error


def _compose(text: str) -> str:
    """Return a text in NFC, with white space as it is."""
    return unicodedata.normalize("NFC", text)


def _extract(pattern: str, text: str) -> str | None:
    """Return the first group of the last match that has one, None without any."""
    extracted: str | None = None
    for match in re.finditer(pattern, text):
        extracted = match[1] or extracted
    return None if extracted is None else normalize(extracted, ignore_case=False)


def score(prediction: str, reference: str, *, pattern: str) -> float:
    """Return 1.0 for a match, or if the first group is that of the reference."""
    pattern, prediction, reference = (_compose(x) for x in (pattern, prediction, reference))
    if re.compile(pattern).groups == 0:
        return float(re.search(pattern, prediction) is not None)
    expected = _extract(pattern, reference)
    if expected is None:
        expected = normalize(reference, ignore_case=False)
    return float(_extract(pattern, prediction) == expected)
