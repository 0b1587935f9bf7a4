"""1 where the predicted label is the true one, else 0."""

from __future__ import annotations

from collections.abc import Sequence

from bakeoff.results import MetricInfo

INFO = MetricInfo("accuracy", better="higher", unit="fraction", low=0.0, high=1.0)


def score(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return 1.0 for each label that equals its reference."""
    return [float(p == r) for p, r in zip(predictions, references, strict=True)]
