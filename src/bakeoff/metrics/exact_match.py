"""1 where the answer equals the reference after trimming white space, else 0."""

from __future__ import annotations

from collections.abc import Sequence

from bakeoff.results import MetricInfo

INFO = MetricInfo("exact_match", better="higher", unit="fraction", low=0.0, high=1.0)


def score(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return 1.0 for each answer that equals its reference, white space at the ends aside."""
    return [float(p.strip() == r.strip()) for p, r in zip(predictions, references, strict=True)]
