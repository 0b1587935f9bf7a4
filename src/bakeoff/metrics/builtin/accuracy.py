"""1 if the predicted label is the true one, else 0."""

from __future__ import annotations

from bakeoff.core.record import MetricInfo

INFO = MetricInfo("accuracy", better="higher", unit="fraction", low=0.0, high=1.0)
TASKS = ("classify", "choice")


def score(prediction: str, reference: str) -> float:
    """Return 1.0 if the label equals its reference."""
    return float(prediction == reference)
