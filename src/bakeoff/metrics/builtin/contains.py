"""1 if the prediction contains the reference, else 0.

Matches are not limited to words: ``concatenate`` contains ``cat``. Both sides are compared in
Unicode's composed form (NFC).
"""

from __future__ import annotations

from bakeoff.core.record import MetricInfo
from bakeoff.metrics._text import normalize

INFO = MetricInfo("contains", better="higher", unit="fraction", low=0.0, high=1.0)
TASKS = ("sft",)
LATER_OPTIONS = ("ignore_spaces",)


def score(
    prediction: str, reference: str, *, ignore_case: bool = False, ignore_spaces: bool = False
) -> float:
    """Return 1.0 if the prediction contains the reference, ignoring white space at its ends.

    With ``ignore_spaces`` white space inside is ignored, too.
    """
    predicted, expected = (
        normalize(text, ignore_case, ignore_spaces) for text in (prediction, reference)
    )
    return float(expected in predicted)
