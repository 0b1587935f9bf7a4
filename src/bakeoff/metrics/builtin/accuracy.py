"""1 if the predicted label is the true one, else 0; both in Unicode's composed form (NFC)."""

from __future__ import annotations

import unicodedata

from bakeoff.core.record import MetricInfo

INFO = MetricInfo("accuracy", better="higher", unit="fraction", low=0.0, high=1.0)
TASKS = ("classify", "choice")


def score(prediction: str, reference: str) -> float:
    """Return 1.0 if the label equals its reference."""
    predicted, expected = (unicodedata.normalize("NFC", x) for x in (prediction, reference))
    return float(predicted == expected)
