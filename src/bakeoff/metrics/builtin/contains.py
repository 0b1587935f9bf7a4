"""1 where the reference stands somewhere in the answer, else 0.

Not by words: ``cat`` stands in ``concatenate``. Unicode's composed form (NFC) on both sides.
"""

from __future__ import annotations

from bakeoff.core.record import MetricInfo
from bakeoff.metrics._text import normalize

INFO = MetricInfo("contains", better="higher", unit="fraction", low=0.0, high=1.0)


def score(prediction: str, reference: str, *, ignore_case: bool = False) -> float:
    """Return 1.0 where the answer contains the reference, white space at its ends aside."""
    return float(normalize(reference, ignore_case) in normalize(prediction, ignore_case))
