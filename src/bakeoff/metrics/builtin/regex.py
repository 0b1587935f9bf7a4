"""1 where a pattern of the study file finds in the answer what it should, else 0.

``pattern`` is a regular expression of Python's ``re``, searched anywhere in the answer:

- without a group, a match is enough (a format that answers must have);
- with a group, the first group of the *last* match that takes something must equal what the same
  pattern takes out of the reference, or the whole reference where it finds nothing there; white
  space at the ends aside.

``(?i)`` in front of the pattern ignores case, ``(?s)`` lets ``.`` match line ends.
"""

from __future__ import annotations

import re

from bakeoff.core.record import MetricInfo
from bakeoff.metrics._text import normalize

INFO = MetricInfo("regex", better="higher", unit="fraction", low=0.0, high=1.0)


def check(*, pattern: str) -> None:
    """Refuse a pattern that is none.

    Raises:
        ValueError: what is wrong with it and where.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"`pattern` is not a regular expression: {error}") from error


def _extract(pattern: str, text: str) -> str | None:
    found: str | None = None
    for match in re.finditer(pattern, text):
        found = match[1] or found
    return None if found is None else normalize(found, ignore_case=False)


def score(prediction: str, reference: str, *, pattern: str) -> float:
    """Return 1.0 for a match, or for the same first group as the reference's."""
    if re.compile(pattern).groups == 0:
        return float(re.search(pattern, prediction) is not None)
    wanted = _extract(pattern, reference)
    if wanted is None:
        wanted = normalize(reference, ignore_case=False)
    return float(_extract(pattern, prediction) == wanted)
