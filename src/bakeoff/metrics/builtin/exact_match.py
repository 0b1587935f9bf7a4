"""1 if the prediction equals the reference after trimming white space, else 0.

Both are compared in Unicode's composed form (NFC), so that equal accents typed differently match.
"""

from __future__ import annotations

from bakeoff.core.record import MetricInfo
from bakeoff.metrics._text import normalize

INFO = MetricInfo("exact_match", better="higher", unit="fraction", low=0.0, high=1.0)
TASKS = ("sft",)
LATER_OPTIONS = ("ignore_spaces",)


def score(
    prediction: str, reference: str, *, ignore_case: bool = False, ignore_spaces: bool = False
) -> float:
    """Return 1.0 if both texts are equal, ignoring white space at the ends (or everywhere)."""
    predicted, expected = (
        normalize(text, ignore_case, ignore_spaces) for text in (prediction, reference)
    )
    return float(predicted == expected)
